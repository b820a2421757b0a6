//! System calls that no library wraps.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd};

/// What a file asks of direct I/O, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectAlignment {
    /// Of the memory.
    pub memory: u32,
    /// Of offset and length.
    pub offset: u32,
}

/// What the kernel says about direct I/O on this file; `None` when it has none, or does not say (`STATX_DIOALIGN`,
/// Linux 6.1, and not every file system).
pub fn direct_alignment(file: &impl AsFd) -> Option<DirectAlignment> {
    // SAFETY: all bytes zero is a valid `statx`.
    let mut answer: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: an empty path with AT_EMPTY_PATH names the descriptor; `answer` is a whole `statx`.
    let result = unsafe {
        libc::statx(
            file.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            std::ptr::from_mut(&mut answer),
        )
    };
    let known = result == 0 && answer.stx_mask & libc::STATX_DIOALIGN != 0;
    let alignment = DirectAlignment { memory: answer.stx_dio_mem_align, offset: answer.stx_dio_offset_align };
    (known && alignment.memory != 0 && alignment.offset != 0).then_some(alignment)
}

/// From now on a write beyond the limit on a file's size (`RLIMIT_FSIZE`) fails as `EFBIG` instead of killing this process:
/// it is one write that finds no room, like on a full host.
pub fn outlive_file_size_limit() {
    // SAFETY: ignoring a signal installs no code of ours.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}
