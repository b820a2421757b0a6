//! An interface, a component that serves it and a client that calls it, in one process: `cargo run --example hello`.
use std::rc::Rc;

use kernel_ipc::interface::{Connect, Connection, Granted, NewCap, Object, OperationError, interface};
use kernel_ipc::session::{Call, SessionInfo, in_process};
use kernel_ipc::{CallError, Epoch, Incarnation, SessionId, wire::Shape};

/// Greets people.
#[interface("example.hello/1")]
pub trait Hello {
    /// Somebody who greets.
    type Greeter;
    /// Be greeted.
    const GREET: Rights = 8;
    /// Greets `name`.
    #[op(1, requires = GREET, retry = idempotent, deadline = "1s")]
    fn greet(greeter: Greeter, name: &str) -> Result<String, GreetError>;
}

/// Why there is no greeting.
#[derive(Debug, OperationError)]
#[repr(u16)]
pub enum GreetError {
    /// Nobody is there to be greeted.
    Nobody = 1,
}

#[derive(Object)]
#[kind(Greeter)]
struct Polite;

struct Host;

impl Handler for Host {
    type Greeter = Polite;
    async fn greet(&self, call: &Call, _: Granted<Polite>, name: &str) -> Result<String, CallError<GreetError>> {
        let greeting = format!("Hello {name}, friend of {}", call.session().client_name);
        if name.is_empty() { Err(GreetError::Nobody.into()) } else { Ok(greeting) }
    }
}

fn main() {
    kernel_ipc::blocking(async {
        let (id, epoch, client, client_name) = (SessionId(1), Epoch(1), Incarnation(1), "example".into());
        let info = SessionInfo { id, epoch, client, client_name, attenuation: ().into() };
        let root = NewCap::new(Polite, GREET).to_grant();
        let (session, _host) = in_process(Shape::default(), root, Rc::new(Dispatcher(Host)), info, None);
        let client = Client::from_connection(Connection::fixed(session));
        println!("{:?}", client.greet(client.root(), "world").await);
        println!("{:?}", client.greet(client.root(), "").await);
    });
}
