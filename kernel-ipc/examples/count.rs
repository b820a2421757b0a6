//! A client of the counter: `count STATE N` adds N in the system that runs on the state directory.
#[path = "counter/interface.rs"]
mod interface;

use std::error::Error;
use std::path::Path;

use kernel_ipc::component::Context;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [state, n] = arguments.as_slice() else { return Err("usage: count STATE N".into()) };
    kernel_ipc::blocking(async {
        let cx = Context::guest(Path::new(state), "count")?;
        let counter: interface::Client = cx.connect("counter.counter").await?;
        println!("{}", counter.add(counter.root(), n.parse()?).await?);
        Ok(())
    })
}
