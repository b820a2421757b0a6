//! What `atoll.block/1` looks like on the wire.

mod common;

use kernel_ipc::interface::{Granted, LeasePart, NewCap, Object};
use kernel_ipc::lease::Lend;
use kernel_ipc::session::Call;
use kernel_ipc::{CallError, Rights};
use protocol::block::{
    BLOCK_SIZE, Client, Device, DeviceInfo, Dispatcher, FLUSH, FlushError, Handler, InfoError, ReadError, WriteError,
};

#[derive(Clone, Copy, Object)]
#[kind(Device)]
struct Disk;

struct Driver;

impl Handler for Driver {
    type Device = Disk;

    async fn info(&self, _: &Call, _: Granted<Disk>) -> Result<DeviceInfo, CallError<InfoError>> {
        Ok(DeviceInfo {
            block_size: BLOCK_SIZE,
            max_transfer_blocks: 256,
            blocks: 1 << 20,
            direct: true,
            read_only: false,
            blank: false,
        })
    }

    async fn read(&self, _: &Call, _: Granted<Disk>, block: u64, count: u32) -> Result<Lend, CallError<ReadError>> {
        match block {
            13 => Err(ReadError::Io { errno: 5, block: 13 }.into()),
            14 => Err(ReadError::OutOfRange.into()),
            _ => Ok(common::lend((count * BLOCK_SIZE).into())),
        }
    }

    async fn write(&self, _: &Call, _: Granted<Disk>, block: u64, _: LeasePart) -> Result<(), CallError<WriteError>> {
        match block {
            13 => Err(WriteError::Io { errno: 5, block: 13 }.into()),
            14 => Err(WriteError::OutOfRange.into()),
            15 => Err(WriteError::NoSpace.into()),
            16 => Err(WriteError::ReadOnly.into()),
            _ => Ok(()),
        }
    }

    async fn flush(&self, _: &Call, _: Granted<Disk>) -> Result<(), CallError<FlushError>> {
        Ok(())
    }

    async fn discard(&self, _: &Call, _: Granted<Disk>, _: u64, _: u32) -> Result<(), CallError<WriteError>> {
        Ok(())
    }

    async fn write_zeroes(&self, _: &Call, _: Granted<Disk>, _: u64, _: u32) -> Result<(), CallError<WriteError>> {
        Ok(())
    }
}

#[test]
fn the_bytes_of_every_operation_are_those_of_the_golden_file() {
    let root = NewCap::new(Disk, Rights::READ | Rights::WRITE | FLUSH).to_grant();
    common::compare("block", Dispatcher(Driver), root, async |client: &Client| {
        let disk = client.root();
        client.info(disk).await.expect("described");
        client.read(disk, 0x0102_0304, 16).await.expect("read");
        client.read(disk, 13, 1).await.expect_err("broken");
        client.read(disk, 14, 1).await.expect_err("out of range");
        let part = LeasePart::of(common::lease(1 << 20), 4096..8192);
        client.write(disk, 7, part).await.expect("written");
        for block in 13..=16 {
            client.write(disk, block, part).await.expect_err("each error");
        }
        client.flush(disk).await.expect("flushed");
        client.discard(disk, 8, 9).await.expect("discarded");
        client.write_zeroes(disk, 10, 11).await.expect("zeroed");
    });
}
