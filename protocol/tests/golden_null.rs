//! What `atoll.null/1` looks like on the wire.

mod common;

use kernel_ipc::interface::{Granted, NewCap, Object};
use kernel_ipc::lease::Lend;
use kernel_ipc::session::Call;
use kernel_ipc::{CallError, Rights};
use protocol::null::{Client, Dispatcher, Handler, NullError, Thing};

#[derive(Clone, Copy, Object)]
#[kind(Thing)]
struct Something;

struct Nothing;

impl Handler for Nothing {
    type Thing = Something;

    fn null(&self, _: &Call, _: Granted<Something>) -> Result<(), CallError<NullError>> {
        Ok(())
    }

    fn echo(&self, _: &Call, _: Granted<Something>, bytes: &[u8]) -> Result<Vec<u8>, CallError<NullError>> {
        if bytes.is_empty() { Err(NullError::Impossible.into()) } else { Ok(bytes.to_vec()) }
    }

    fn count(&self, _: &Call, _: Granted<Something>) -> Result<u64, CallError<NullError>> {
        Ok(0x0102_0304_0506)
    }

    async fn lend(&self, _: &Call, _: Granted<Something>, bytes: u32) -> Result<Lend, CallError<NullError>> {
        Ok(common::lend(bytes.into()))
    }

    async fn work(&self, _: &Call, _: Granted<Something>, rounds: u32) -> Result<u64, CallError<NullError>> {
        Ok(rounds.into())
    }
}

#[test]
fn the_bytes_of_every_operation_are_those_of_the_golden_file() {
    let root = NewCap::new(Something, Rights::READ).to_grant();
    common::compare("null", Dispatcher(Nothing), root, async |client: &Client| {
        let thing = client.root();
        client.null(thing).await.expect("nothing");
        client.echo(thing, b"bytes").await.expect("them");
        client.echo(thing, b"").await.expect_err("impossible");
        client.count(thing).await.expect("a number");
        client.lend(thing, 4096).await.expect("a lease");
        client.work(thing, 20_000).await.expect("a number");
    });
}
