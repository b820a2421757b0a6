//! The end of a connection that nobody is left to use: everything is sent and our side is shut, and its client and the run of this
//! process that saw to it have both died.

use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use kernel_ipc::runtime::io::{self, File};
use kernel_ipc::runtime::{self};

use super::connection::RECEIVE_BYTES;
use super::kept::Keeping;
use crate::core::connection::Limits;
use crate::ledger::ConnectionRecord;
use crate::sys;

/// How often it is looked at when the peer says nothing.
const TICK: Duration = Duration::from_millis(100);

/// Closes it as soon as the peer has everything and has ended its side, or has had everything for as long as `limits` say, or
/// takes no more. What the peer still says is thrown away. It is kept until then, for the run after this one.
pub(crate) async fn farewell(socket: File, record: ConnectionRecord, keeping: Rc<Keeping>, limits: Limits) {
    let (mut before, mut since, mut has_ended) = (u64::MAX, Instant::now(), false);
    loop {
        let undelivered = sys::undelivered(socket.as_fd()).unwrap_or(0);
        if undelivered < before {
            (before, since) = (undelivered, Instant::now());
        }
        let patience = if undelivered == 0 { limits.linger } else { limits.stall };
        if (undelivered == 0 && has_ended) || since.elapsed() >= patience {
            break;
        }
        if has_ended {
            runtime::sleep(TICK).await;
        } else if let Ok((received, _)) = runtime::timeout(TICK, io::recv(&socket, vec![0; RECEIVE_BYTES], 0)).await {
            has_ended = matches!(received, Ok(0) | Err(_));
        }
    }
    keeping.berths.forget(record.serial());
    record.free();
}
