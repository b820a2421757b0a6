//! What every `atoll.block/1` must do, whoever serves it. The device's contents are lost.

use kernel_ipc::interface::Lease;
use kernel_ipc::runtime;
use kernel_ipc::{CallError, Cause, Executed};
use protocol::block::{BLOCK_SIZE, DeviceInfo, ReadError, WriteError};

use super::Guest;

const SIZE: usize = BLOCK_SIZE as usize;

/// Runs the whole suite. The device has at least 2,048 blocks and takes writes.
pub async fn run(guest: &Guest) {
    let info = guest.device.info(guest.device.root()).await.expect("every device can be described");
    assert_eq!(info.block_size, BLOCK_SIZE);
    assert!(info.blocks >= 2048 && !info.read_only && info.max_transfer_blocks >= 1);
    what_is_written_is_read(guest, &info).await;
    ranges_beyond_the_device_are_refused_and_change_nothing(guest, &info).await;
    a_lease_is_a_copy_of_its_moment(guest).await;
    many_calls_at_once_all_end_right(guest, &info).await;
    zeroed_and_discarded_blocks_leave_their_neighbours_alone(guest).await;
    flushes_succeed_beside_writes(guest).await;
    only_the_callers_own_leases_are_written_from(guest).await;
    leases_that_are_dropped_make_room(guest, &info).await;
}

/// Bytes that say where they belong and which version they are.
fn pattern(block: u64, count: u32, version: u8) -> Vec<u8> {
    let mut bytes = vec![version; count as usize * SIZE];
    for (number, chunk) in bytes.chunks_exact_mut(512).enumerate() {
        chunk[..8].copy_from_slice(&(block * 8 + number as u64).to_le_bytes());
    }
    bytes
}

async fn write(guest: &Guest, block: u64, bytes: &[u8]) -> Result<(), CallError<WriteError>> {
    let part = guest.stage(bytes);
    let result = guest.device.write(guest.device.root(), block, part).await;
    guest.take_back(&part);
    result
}

async fn lease(guest: &Guest, block: u64, count: u32) -> Lease {
    let lease = guest.device.read(guest.device.root(), block, count).await.expect("readable");
    assert_eq!(lease.len(), u64::from(count) * u64::from(BLOCK_SIZE));
    lease
}

async fn read(guest: &Guest, block: u64, count: u32) -> Vec<u8> {
    guest.bytes(&lease(guest, block, count).await)
}

async fn what_is_written_is_read(guest: &Guest, info: &DeviceInfo) {
    let most = info.max_transfer_blocks;
    let last = info.blocks - u64::from(most);
    for (block, count) in [(0, 1), (1, 3), (7, 5), (300, most), (last, most), (info.blocks - 1, 1)] {
        write(guest, block, &pattern(block, count, 1)).await.expect("writable");
        assert!(read(guest, block, count).await == pattern(block, count, 1), "{count} blocks from {block}");
    }
    // A part of a lease, from its middle.
    let whole = guest.stage(&pattern(40, 4, 2));
    let middle = kernel_ipc::interface::LeasePart { name: whole.name, offset: SIZE as u64, length: 2 * SIZE as u64 };
    guest.device.write(guest.device.root(), 41, middle).await.expect("writable");
    guest.take_back(&whole);
    assert!(read(guest, 41, 2).await == pattern(40, 4, 2)[SIZE..3 * SIZE]);
}

async fn ranges_beyond_the_device_are_refused_and_change_nothing(guest: &Guest, info: &DeviceInfo) {
    let (device, root) = (&guest.device, guest.device.root());
    let most = info.max_transfer_blocks;
    write(guest, info.blocks - 1, &pattern(5, 1, 3)).await.expect("writable");
    for (block, count) in
        [(0, 0), (info.blocks, 1), (info.blocks - 1, 2), (u64::MAX, 1), (u64::MAX, u32::MAX), (0, most + 1)]
    {
        let refused = device.read(root, block, count).await;
        assert!(matches!(refused, Err(CallError::Operation(ReadError::OutOfRange))), "{count} from {block}");
    }
    for (block, count) in [(0, 0), (info.blocks, 1), (info.blocks - 1, 2), (u64::MAX, 1)] {
        let refused = device.discard(root, block, count).await;
        assert!(matches!(refused, Err(CallError::Operation(WriteError::OutOfRange))), "discard {count} from {block}");
        let refused = device.write_zeroes(root, block, count).await;
        assert!(matches!(refused, Err(CallError::Operation(WriteError::OutOfRange))), "zero {count} from {block}");
    }
    let refused = write(guest, info.blocks - 1, &pattern(0, 2, 4)).await;
    assert!(matches!(refused, Err(CallError::Operation(WriteError::OutOfRange))));
    // Not whole blocks.
    let whole = guest.stage(&pattern(0, 1, 4));
    let half = kernel_ipc::interface::LeasePart { name: whole.name, offset: 0, length: 512 };
    let refused = device.write(root, 0, half).await;
    assert!(matches!(refused, Err(CallError::Operation(WriteError::OutOfRange))));
    guest.take_back(&whole);
    assert!(read(guest, info.blocks - 1, 1).await == pattern(5, 1, 3));
}

async fn a_lease_is_a_copy_of_its_moment(guest: &Guest) {
    write(guest, 64, &pattern(64, 16, 5)).await.expect("writable");
    let before = lease(guest, 64, 16).await;
    write(guest, 64, &pattern(64, 16, 6)).await.expect("writable");
    let after = lease(guest, 64, 16).await;
    assert!(guest.bytes(&before) == pattern(64, 16, 5));
    assert!(guest.bytes(&after) == pattern(64, 16, 6));
}

async fn many_calls_at_once_all_end_right(guest: &Guest, info: &DeviceInfo) {
    let count = info.max_transfer_blocks.min(8);
    let blocks: Vec<u64> = (0..64).map(|number| 512 + number * u64::from(count)).collect();
    let parts: Vec<_> = blocks.iter().map(|block| guest.stage(&pattern(*block, count, 7))).collect();
    let calls: Vec<_> = std::iter::zip(&blocks, &parts)
        .map(|(&block, &part)| {
            let device = guest.device.clone();
            runtime::spawn(async move { device.write(device.root(), block, part).await })
        })
        .collect();
    for (call, part) in std::iter::zip(calls, &parts) {
        call.await.expect("nobody cancels it").expect("writable");
        guest.take_back(part);
    }
    let calls: Vec<_> = blocks
        .iter()
        .map(|&block| {
            let device = guest.device.clone();
            runtime::spawn(async move { device.read(device.root(), block, count).await })
        })
        .collect();
    for (call, &block) in std::iter::zip(calls, &blocks) {
        let lease = call.await.expect("nobody cancels it").expect("readable");
        assert!(guest.bytes(&lease) == pattern(block, count, 7), "block {block}");
    }
}

async fn zeroed_and_discarded_blocks_leave_their_neighbours_alone(guest: &Guest) {
    let (device, root) = (&guest.device, guest.device.root());
    write(guest, 100, &pattern(100, 32, 8)).await.expect("writable");
    device.write_zeroes(root, 104, 8).await.expect("can be zeroed");
    device.discard(root, 120, 4).await.expect("can be discarded");
    let bytes = read(guest, 100, 32).await;
    let expected = pattern(100, 32, 8);
    let part = |blocks: std::ops::Range<usize>| blocks.start * SIZE..blocks.end * SIZE;
    assert!(bytes[part(4..12)].iter().all(|byte| *byte == 0));
    for neighbours in [0..4, 12..20, 24..32] {
        assert!(bytes[part(neighbours.clone())] == expected[part(neighbours)]);
    }
    write(guest, 104, &pattern(104, 8, 9)).await.expect("zeroed blocks can be written again");
    write(guest, 120, &pattern(120, 4, 9)).await.expect("discarded blocks can be written again");
    assert!(read(guest, 104, 8).await == pattern(104, 8, 9) && read(guest, 120, 4).await == pattern(120, 4, 9));
}

async fn flushes_succeed_beside_writes(guest: &Guest) {
    let flushing = runtime::spawn({
        let device = guest.device.clone();
        async move { device.flush(device.root()).await }
    });
    for block in 200..232 {
        write(guest, block, &pattern(block, 1, 10)).await.expect("writable");
    }
    flushing.await.expect("nobody cancels it").expect("can be flushed");
    guest.device.flush(guest.device.root()).await.expect("can be flushed");
}

async fn only_the_callers_own_leases_are_written_from(guest: &Guest) {
    let stale = |result: Result<(), CallError<WriteError>>| {
        assert!(
            matches!(result, Err(CallError::Failed { cause: Cause::StaleLease, executed: Executed::No })),
            "{result:?}"
        );
    };
    let (device, root) = (&guest.device, guest.device.root());
    write(guest, 900, &pattern(900, 1, 11)).await.expect("writable");
    // Lent to somebody else.
    let others = guest.lend(0, SIZE as u64, kernel_ipc::Incarnation(4711));
    stale(device.write(root, 900, others).await);
    guest.take_back(&others);
    // Taken back before.
    let ended = guest.stage(&pattern(0, 1, 12));
    guest.take_back(&ended);
    stale(device.write(root, 900, ended).await);
    // A length that the lender's table does not know.
    let short = guest.stage(&pattern(0, 1, 12));
    let mut long = short;
    long.name.length = 2 * SIZE as u64;
    long.length = 2 * SIZE as u64;
    stale(device.write(root, 900, long).await);
    guest.take_back(&short);
    // A lender that nobody introduced.
    let mut strange = guest.stage(&pattern(0, 1, 12));
    let real = strange;
    strange.name.lender = kernel_ipc::LenderId(4711);
    stale(device.write(root, 900, strange).await);
    guest.take_back(&real);
    // A range that ends beyond the region.
    let beyond = guest.lend(4 << 20, 1 << 20, guest.me);
    stale(device.write(root, 900, beyond).await);
    guest.take_back(&beyond);
    assert!(read(guest, 900, 1).await == pattern(900, 1, 11));
}

async fn leases_that_are_dropped_make_room(guest: &Guest, info: &DeviceInfo) {
    let (device, root) = (&guest.device, guest.device.root());
    let most = info.max_transfer_blocks;
    let mut held = Vec::new();
    let refused = loop {
        match device.read(root, 0, most).await {
            Ok(lease) => held.push(lease),
            Err(error) => break error,
        }
        assert!(held.len() < 1 << 20, "memory without end");
    };
    assert!(
        matches!(
            refused,
            CallError::Failed { cause: Cause::Busy { .. } | Cause::Quota, executed: Executed::No | Executed::Yes }
        ),
        "{refused:?}"
    );
    held.pop();
    // The release travels behind the call that follows it.
    let again = async {
        loop {
            match device.read(root, 0, most).await {
                Ok(lease) => return lease,
                Err(CallError::Failed { .. }) => runtime::yield_now().await,
                Err(CallError::Operation(error)) => panic!("{error}"),
            }
        }
    };
    drop(again.await);
}
