//! Shared memory with exactly one writer.
//!
//! - The writer maps its memfd writable and only then seals it (`SHRINK | GROW | FUTURE_WRITE | SEAL`): from then on
//!   nobody, not even the next incarnation of the writer, can map it writable again, and nobody can resize it.
//! - A reader checks seals and size *before* it maps, and maps read-only: an unsealed file could be truncated under
//!   it, which is a `SIGBUS`.
//! - Memory that is *kept* is the exception: a writer's next incarnation maps it writable again, so it is sealed against
//!   resizing alone. Of a ledger only its host and the keeper ever have a descriptor. Of what others read as well (a lease
//!   table, a region) they get one that is open for reading only, of a file that other users may not open for writing.
//! - References into shared memory never exist outside this file, and inside it only references to single atomic
//!   words. Byte ranges are copied by volatile accesses, whatever the writer does meanwhile.
//! - Offsets are checked against the mapping's length. An offset that is out of bounds in a load or store of a word
//!   is this process' own mistake and panics; copies report it.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};

use super::futex::WordAddress;
use super::line;

/// A range that is not inside the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfBounds;

impl std::fmt::Display for OutOfBounds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the range is not inside the segment")
    }
}

impl std::error::Error for OutOfBounds {}

const SEALS: i32 = KEPT_SEALS | libc::F_SEAL_FUTURE_WRITE;
/// The seals of memory that a writer's next incarnation writes on: nobody can resize it.
const KEPT_SEALS: i32 = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
/// `MFD_NOEXEC_SEAL` (Linux 6.3): the file can never be executed.
const MFD_NOEXEC_SEAL: u32 = 0x0008;

/// A segment that this process, and no other, can write.
#[derive(Debug)]
pub struct SegmentWriter {
    map: MmapRaw,
    fd: OwnedFd,
}

impl SegmentWriter {
    /// Makes a segment of `len` zero bytes. `name` shows in `/proc/PID/maps`. Its pages are taken as they are used.
    ///
    /// # Errors
    /// What `memfd_create`, `ftruncate`, `mmap` or `fcntl` say; `InvalidInput` for a length of 0.
    pub fn create(name: &str, len: usize) -> io::Result<SegmentWriter> {
        let fd = memfd(name)?;
        set_len(&fd, len)?;
        Self::adopt(fd)
    }

    /// Takes over a fresh, writable memfd that somebody else made and sized: maps it, then seals it.
    ///
    /// # Errors
    /// As for [`create`](Self::create). `PermissionDenied` if the file was sealed by an earlier writer.
    pub fn adopt(fd: OwnedFd) -> io::Result<SegmentWriter> {
        Self::map_and_seal(fd, SEALS)
    }

    /// Maps memory that one incarnation after the other writes, fresh or used: a ledger. Only its host and the keeper
    /// ever have `fd`, so it still has one writer at a time.
    ///
    /// # Errors
    /// As for [`create`](Self::create). `PermissionDenied` for memory that was sealed as an ordinary segment.
    pub fn open_kept(fd: OwnedFd) -> io::Result<SegmentWriter> {
        if seals(fd.as_fd()) & (SEALS | KEPT_SEALS) == KEPT_SEALS {
            return Self::map_and_seal(fd, 0);
        }
        Self::map_and_seal(fd, KEPT_SEALS)
    }

    /// The same for memory that others read: [`fd`](Self::fd) is a descriptor with which nobody can write it.
    ///
    /// # Errors
    /// As for [`open_kept`](Self::open_kept); what the kernel says to opening the file again.
    pub fn open_kept_for_readers(fd: OwnedFd) -> io::Result<SegmentWriter> {
        let SegmentWriter { map, fd } = Self::open_kept(fd)?;
        // A memfd may be opened by everybody who sees a descriptor of it, unless its mode says otherwise.
        nix::sys::stat::fchmod(&fd, nix::sys::stat::Mode::S_IRUSR)?;
        let fd = std::fs::File::open(format!("/proc/self/fd/{}", fd.as_raw_fd()))?.into();
        Ok(SegmentWriter { map, fd })
    }

    fn map_and_seal(fd: OwnedFd, add: i32) -> io::Result<SegmentWriter> {
        let len = file_len(fd.as_fd())?;
        if len == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let map = MmapOptions::new().len(len).map_raw(&fd)?;
        // SAFETY: fcntl with F_ADD_SEALS takes an int and touches no memory.
        if add != 0 && unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, add) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // Only now can nobody shrink it any more: a mapping beyond the file's end would be a SIGBUS.
        if file_len(fd.as_fd())? != len {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the segment changed its size"));
        }
        Ok(SegmentWriter { map, fd })
    }

    /// The file, to be sent to readers.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Bytes of the segment.
    #[expect(clippy::len_without_is_empty, reason = "a segment is never empty")]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Loads a word.
    ///
    /// # Panics
    /// If the word is not inside the segment or not aligned.
    #[inline]
    pub fn load_u64(&self, offset: usize, order: Ordering) -> u64 {
        self.u64_at(offset).load(order)
    }

    /// Loads a word. Panics as [`load_u64`](Self::load_u64) does.
    #[inline]
    pub fn load_u32(&self, offset: usize, order: Ordering) -> u32 {
        self.u32_at(offset).load(order)
    }

    /// Stores a word. Panics as [`load_u64`](Self::load_u64) does.
    #[inline]
    pub fn store_u64(&self, offset: usize, value: u64, order: Ordering) {
        self.u64_at(offset).store(value, order);
    }

    /// Stores a word. Panics as [`load_u64`](Self::load_u64) does.
    #[inline]
    pub fn store_u32(&self, offset: usize, value: u32, order: Ordering) {
        self.u32_at(offset).store(value, order);
    }

    /// Writes one aligned [line](super::line) of eight words: a reader that sees the new first word with
    /// [`SegmentReader::load_line`] sees the whole line.
    ///
    /// # Panics
    /// If the line is not inside the segment or not aligned to 64.
    #[inline]
    pub fn store_line(&self, offset: usize, line: &[u64; 8]) {
        assert!(offset.is_multiple_of(64) && offset < self.map.len() && self.map.len() - offset >= 64);
        // SAFETY: inside the mapping and aligned (checked above), which is writable and lives as long as `self`; an
        // array of atomics has the layout of the array of words, and all concurrent accesses to it are atomic.
        let words = unsafe { &*self.map.as_mut_ptr().add(offset).cast::<[AtomicU64; 8]>() };
        line::store(words, line);
    }

    /// Has the processor fetch a line that will soon be written, while other things are done. A hint; a line that is not
    /// there is nothing.
    #[inline]
    pub fn prepare_line(&self, offset: usize) {
        if offset < self.map.len() {
            // SAFETY: inside the mapping (checked above).
            let line = unsafe { self.map.as_mut_ptr().add(offset) };
            // SAFETY: a prefetch changes no memory and no register, and cannot fault.
            #[cfg(target_arch = "x86_64")]
            unsafe {
                std::arch::asm!("prefetchw [{}]", in(reg) line, options(nostack, preserves_flags, readonly));
            }
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            unsafe {
                std::arch::asm!("prfm pstl1keep, [{}]", in(reg) line, options(nostack, preserves_flags, readonly));
            }
        }
    }

    /// Copies bytes into the segment, in no particular order.
    ///
    /// # Errors
    /// [`OutOfBounds`]; nothing was written.
    #[inline]
    pub fn copy_in(&self, offset: usize, bytes: &[u8]) -> Result<(), OutOfBounds> {
        check_range(offset, bytes.len(), self.map.len())?;
        // SAFETY: the range is inside the mapping (checked above), which is writable and lives as long as `self`;
        // `bytes` is this process' private memory, so the two do not overlap.
        unsafe { copy_to_shared(self.map.as_mut_ptr().add(offset), bytes) };
        Ok(())
    }

    /// Copies bytes out of the segment.
    ///
    /// # Errors
    /// [`OutOfBounds`]; `bytes` is unchanged.
    #[inline]
    pub fn copy_out(&self, offset: usize, bytes: &mut [u8]) -> Result<(), OutOfBounds> {
        check_range(offset, bytes.len(), self.map.len())?;
        // SAFETY: as in `copy_in`.
        unsafe { copy_from_shared(self.map.as_ptr().add(offset), bytes) };
        Ok(())
    }

    /// The address of a futex word, to wake its sleepers.
    ///
    /// # Panics
    /// As [`load_u64`](Self::load_u64).
    pub fn word(&self, offset: usize) -> WordAddress {
        WordAddress::new(self.u32_at(offset).as_ptr()).expect("aligned, and not null in a mapping")
    }

    /// The first byte of the mapping, for I/O of the kernel into the segment.
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.map.as_mut_ptr()
    }

    #[inline]
    fn u64_at(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset < self.map.len() && self.map.len() - offset >= 8);
        // SAFETY: inside the mapping and aligned (checked above; mappings are page-aligned); the mapping is
        // writable and lives as long as `self`; all concurrent accesses to words are atomic.
        unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().add(offset).cast()) }
    }

    #[inline]
    fn u32_at(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset < self.map.len() && self.map.len() - offset >= 4);
        // SAFETY: as in `u64_at`.
        unsafe { AtomicU32::from_ptr(self.map.as_mut_ptr().add(offset).cast()) }
    }
}

/// A segment that somebody else writes.
#[derive(Debug)]
pub struct SegmentReader {
    map: MmapRaw,
    fd: OwnedFd,
}

impl SegmentReader {
    /// Checks that `fd` is a sealed segment of at least `min_len` bytes and maps all of it read-only.
    ///
    /// # Errors
    /// `InvalidData` if the file is neither sealed as [`SegmentWriter`] seals nor kept memory that `fd` cannot write, or is
    /// too small; else what the kernel says.
    pub fn open(fd: OwnedFd, min_len: usize) -> io::Result<SegmentReader> {
        let seals = seals(fd.as_fd());
        if seals & SEALS != SEALS && (seals & KEPT_SEALS != KEPT_SEALS || !is_read_only(fd.as_fd())) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the segment is not sealed"));
        }
        // Only after the seals have been seen does the size no longer change.
        let len = file_len(fd.as_fd())?;
        if len == 0 || len < min_len {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the segment is too small"));
        }
        let map = MmapOptions::new().len(len).map_raw_read_only(&fd)?;
        Ok(SegmentReader { map, fd })
    }

    /// The file, to be handed on.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Bytes of the segment.
    #[expect(clippy::len_without_is_empty, reason = "a segment is never empty")]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Loads a word.
    ///
    /// # Panics
    /// If the word is not inside the segment or not aligned.
    #[inline]
    pub fn load_u64(&self, offset: usize, order: Ordering) -> u64 {
        assert!(offset.is_multiple_of(8) && offset < self.map.len() && self.map.len() - offset >= 8);
        // SAFETY: inside the mapping and aligned (checked above); it lives as long as `self`; the word is only
        // loaded, which a read-only mapping allows, and the writer's accesses to words are atomic.
        unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().add(offset).cast()) }.load(order)
    }

    /// Loads a word. Panics as [`load_u64`](Self::load_u64) does.
    #[inline]
    pub fn load_u32(&self, offset: usize, order: Ordering) -> u32 {
        assert!(offset.is_multiple_of(4) && offset < self.map.len() && self.map.len() - offset >= 4);
        // SAFETY: as in `load_u64`.
        unsafe { AtomicU32::from_ptr(self.map.as_mut_ptr().add(offset).cast()) }.load(order)
    }

    /// Reads one aligned [line](super::line) of eight words once, if `wanted` likes its first word.
    ///
    /// # Panics
    /// If the line is not inside the segment or not aligned to 64.
    #[inline]
    pub fn load_line(&self, offset: usize, wanted: impl FnOnce(u64) -> bool) -> Option<[u64; 8]> {
        assert!(offset.is_multiple_of(64) && offset < self.map.len() && self.map.len() - offset >= 64);
        // SAFETY: inside the mapping and aligned (checked above); it lives as long as `self`; the words are only
        // loaded, and the writer's accesses to them are atomic.
        let words = unsafe { &*self.map.as_ptr().add(offset).cast::<[AtomicU64; 8]>() };
        line::load(words, wanted)
    }

    /// Copies bytes out of the segment. What the writer changes meanwhile may be in the copy, in part.
    ///
    /// # Errors
    /// [`OutOfBounds`]; `bytes` is unchanged.
    #[inline]
    pub fn copy_out(&self, offset: usize, bytes: &mut [u8]) -> Result<(), OutOfBounds> {
        check_range(offset, bytes.len(), self.map.len())?;
        // SAFETY: the range is inside the mapping (checked above), which cannot shrink (sealed) and lives as long as
        // `self`; `bytes` is private memory of this process.
        unsafe { copy_from_shared(self.map.as_ptr().add(offset), bytes) };
        Ok(())
    }

    /// The address of a futex word, to sleep on it. Waiting works through a read-only mapping.
    ///
    /// # Panics
    /// As [`load_u64`](Self::load_u64).
    pub fn word(&self, offset: usize) -> WordAddress {
        assert!(offset.is_multiple_of(4) && offset < self.map.len() && self.map.len() - offset >= 4);
        WordAddress::new(self.map.as_ptr().wrapping_add(offset).cast()).expect("aligned, and not null in a mapping")
    }

    /// The first byte of the mapping, for I/O of the kernel out of the segment.
    pub fn as_ptr(&self) -> *const u8 {
        self.map.as_ptr()
    }
}

/// A fresh memfd without size, writable and not yet sealed.
///
/// # Errors
/// What `memfd_create` says; `InvalidInput` for a name with a NUL.
pub fn memfd(name: &str) -> io::Result<OwnedFd> {
    let name = CString::new(name).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    let mut last = io::Error::from_raw_os_error(libc::EINVAL);
    // MFD_NOEXEC_SEAL exists from Linux 6.3; older kernels answer EINVAL.
    for flags in [flags | MFD_NOEXEC_SEAL, flags] {
        // SAFETY: `name` is a NUL-terminated string that lives through the call.
        let fd = unsafe { libc::memfd_create(name.as_ptr(), flags) };
        if fd >= 0 {
            // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
        }
        last = io::Error::last_os_error();
        if last.raw_os_error() != Some(libc::EINVAL) {
            break;
        }
    }
    Err(last)
}

/// Sets the size of a memfd that is not sealed yet.
///
/// # Errors
/// What `ftruncate` says.
pub fn set_len(fd: &OwnedFd, len: usize) -> io::Result<()> {
    let len = i64::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    nix::unistd::ftruncate(fd, len).map_err(io::Error::from)
}

/// The seals of a file. One that cannot be sealed at all (not a memfd) has none: the peer's fault, not the system's.
fn seals(fd: BorrowedFd<'_>) -> i32 {
    // SAFETY: fcntl with F_GET_SEALS touches no memory.
    unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) }.max(0)
}

fn is_read_only(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: fcntl with F_GETFL touches no memory.
    unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) & libc::O_ACCMODE == libc::O_RDONLY }
}

fn file_len(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let len = nix::sys::stat::fstat(fd).map_err(io::Error::from)?.st_size;
    usize::try_from(len).map_err(|_| io::ErrorKind::InvalidData.into())
}

#[inline]
fn check_range(offset: usize, len: usize, segment: usize) -> Result<(), OutOfBounds> {
    match offset.checked_add(len) {
        Some(end) if end <= segment => Ok(()),
        _ => Err(OutOfBounds),
    }
}

/// Copies that are at least this long go through `rep movsb`: its start-up costs about as much as 32 word copies.
#[cfg(target_arch = "x86_64")]
const STRING_COPY_BYTES: usize = 256;

/// Copies `to.len()` bytes out of memory that another process may be writing.
///
/// # Safety
/// `from .. from + to.len()` is mapped and readable, and does not overlap `to`.
unsafe fn copy_from_shared(from: *const u8, to: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if to.len() >= STRING_COPY_BYTES {
        // SAFETY: the caller's duty covers the source, `to` is a unique borrow; the copy is opaque to the compiler,
        // so a concurrent writer makes the bytes arbitrary and nothing else. The ABI keeps the direction flag clear.
        unsafe {
            std::arch::asm!("rep movsb", inout("rcx") to.len() => _, inout("rdi") to.as_mut_ptr() => _,
                inout("rsi") from => _, options(nostack, preserves_flags));
        }
        return;
    }
    let (words, rest) = to.as_chunks_mut::<8>();
    for (index, word) in words.iter_mut().enumerate() {
        // SAFETY: inside the range of the caller's duty; `read_volatile` of an unaligned word is not allowed, so the
        // source is read as an array of bytes, whose alignment is 1.
        *word = unsafe { from.add(index * 8).cast::<[u8; 8]>().read_volatile() };
    }
    let done = words.len() * 8;
    for (index, byte) in rest.iter_mut().enumerate() {
        // SAFETY: as above.
        *byte = unsafe { from.add(done + index).read_volatile() };
    }
}

/// Copies `from` into memory that another process may be reading.
///
/// # Safety
/// `to .. to + from.len()` is mapped and writable, and does not overlap `from`.
pub(super) unsafe fn copy_to_shared(to: *mut u8, from: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    if from.len() >= STRING_COPY_BYTES {
        // SAFETY: as in `copy_from_shared`, with the roles exchanged.
        unsafe {
            std::arch::asm!("rep movsb", inout("rcx") from.len() => _, inout("rdi") to => _,
                inout("rsi") from.as_ptr() => _, options(nostack, preserves_flags));
        }
        return;
    }
    let (words, rest) = from.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        // SAFETY: inside the range of the caller's duty; byte arrays have alignment 1.
        unsafe { to.add(index * 8).cast::<[u8; 8]>().write_volatile(*word) };
    }
    let done = words.len() * 8;
    for (index, byte) in rest.iter().enumerate() {
        // SAFETY: as above.
        unsafe { to.add(done + index).write_volatile(*byte) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(len: usize) -> (SegmentWriter, SegmentReader) {
        let writer = SegmentWriter::create("test", len).expect("memfd");
        let fd = writer.fd().try_clone_to_owned().expect("dup");
        let reader = SegmentReader::open(fd, len).expect("sealed");
        (writer, reader)
    }

    #[test]
    fn a_reader_sees_every_length_and_alignment_of_copy() {
        let (writer, reader) = pair(8192);
        for len in [0, 1, 7, 8, 9, 63, 255, 256, 257, 4000] {
            for offset in [0, 1, 7, 8, 4095] {
                let bytes: Vec<u8> = (0..len).map(|i| (i * 7 + offset) as u8).collect();
                let mut seen = vec![0; len];
                writer.copy_in(offset, &bytes).expect("inside");
                reader.copy_out(offset, &mut seen).expect("inside");
                assert_eq!(seen, bytes, "{len} bytes at {offset}");
            }
        }
    }

    #[test]
    fn copies_beyond_the_end_are_refused() {
        let (writer, reader) = pair(4096);
        assert_eq!(writer.copy_in(4090, &[0; 7]), Err(OutOfBounds));
        assert_eq!(reader.copy_out(usize::MAX, &mut [0; 2]), Err(OutOfBounds));
        assert_eq!(reader.copy_out(4096, &mut []), Ok(()));
    }

    #[test]
    fn a_segment_has_one_writer_for_ever() {
        let (writer, _reader) = pair(4096);
        let fd = writer.fd().try_clone_to_owned().expect("dup");
        assert!(SegmentWriter::adopt(fd).is_err());
    }

    #[test]
    fn kept_memory_is_written_by_one_run_after_the_other_and_read_by_others() {
        let memory = memfd("test").expect("memfd");
        set_len(&memory, 4096).expect("size");
        let again = || memory.try_clone().expect("dup");
        let first = SegmentWriter::open_kept_for_readers(again()).expect("fresh");
        let reader = |writer: &SegmentWriter| SegmentReader::open(writer.fd().try_clone_to_owned().expect("dup"), 4096);
        let early = reader(&first).expect("it cannot write");
        first.copy_in(7, b"first").expect("inside");
        drop(first);
        let next = SegmentWriter::open_kept_for_readers(again()).expect("the next run's");
        next.copy_in(12, b", next").expect("inside");
        let mut seen = [0; 11];
        for reader in [early, reader(&next).expect("it cannot write")] {
            reader.copy_out(7, &mut seen).expect("inside");
            assert_eq!(&seen, b"first, next");
        }
        let shared = next.fd().try_clone_to_owned().expect("dup");
        assert!(MmapOptions::new().len(4096).map_raw(&shared).is_err(), "a reader's descriptor writes nothing");
        assert!(SegmentWriter::open_kept(shared).is_err());
        let error = SegmentReader::open(again(), 4096).expect_err("who could write it is no reader");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_file_that_could_shrink_is_refused() {
        let fd = memfd("test").expect("memfd");
        set_len(&fd, 4096).expect("size");
        let error = SegmentReader::open(fd, 4096).expect_err("not sealed");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let file = std::fs::File::open("/proc/self/exe").expect("own program");
        assert!(SegmentReader::open(file.into(), 1).is_err());
    }

    #[test]
    fn a_segment_that_is_too_small_is_refused() {
        let writer = SegmentWriter::create("test", 4096).expect("memfd");
        let fd = writer.fd().try_clone_to_owned().expect("dup");
        assert!(SegmentReader::open(fd, 4097).is_err());
    }
}
