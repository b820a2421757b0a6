//! A component of one's own: serves `example.counter/1`. `counter --manifest > counter.toml; atoll up counter.toml`
pub mod interface;

use std::cell::Cell;
use std::process::ExitCode;
use std::rc::Rc;

use interface::{ADD, CounterError, DESCRIPTION, Dispatcher, Handler, Number, READ};
use kernel_ipc::CallError;
use kernel_ipc::component::{self, Context};
use kernel_ipc::interface::{Granted, NewCap, Object};
use kernel_ipc::session::{Call, SessionInfo};

/// The only object.
#[derive(Object)]
#[kind(Number)]
struct TheNumber;

#[derive(Default)]
struct Counter(Cell<u64>);

impl Handler for Counter {
    type Number = TheNumber;

    async fn add(&self, _: &Call, _: Granted<TheNumber>, n: u64) -> Result<u64, CallError<CounterError>> {
        let sum = self.0.get().checked_add(n).ok_or(CounterError::TooLarge)?;
        self.0.set(sum);
        Ok(sum)
    }

    async fn value(&self, _: &Call, _: Granted<TheNumber>) -> Result<u64, CallError<CounterError>> {
        Ok(self.0.get())
    }
}

async fn serve(cx: Context) -> Result<(), component::Error> {
    let counter = Counter::default();
    counter.0.set(cx.config::<Config>()?.start);
    // From here on it opens no file, executes nothing and has no TCP.
    cx.confine(false);
    let root = async |_: &SessionInfo| Ok(NewCap::new(TheNumber, READ | ADD).to_grant());
    cx.provide("counter", Rc::new(Dispatcher(counter)), root)?;
    cx.ready();
    cx.stopped().await;
    Ok(())
}

/// `config` of its manifest entry.
#[derive(serde::Deserialize)]
struct Config {
    #[serde(default)]
    start: u64,
}

/// A supervisor starts it, or somebody who wants a manifest.
pub fn main() -> ExitCode {
    component::program(&[&DESCRIPTION], serve)
}
