//! The message-passing core.
#![deny(unsafe_code)]

pub mod runtime;
pub mod sys;

use std::future::Future;

/// Runs `future` on this thread's own runtime (made at the first call): the blocking facade.
///
/// # Panics
/// Inside a runtime, and when the kernel has no io_uring.
pub fn blocking<F: Future>(future: F) -> F::Output {
    todo!()
}
pub mod interface;
pub mod rights;
