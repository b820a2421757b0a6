//! The floor of block reads: one thread, one ring, registered buffers, nothing else.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, types};
use memmap2::{MmapMut, MmapRaw};

use hdrhistogram::Histogram;

/// Reads of one length at one depth, direct, into registered buffers: what the kernel and the disk can do.
pub struct RawReads {
    ring: IoUring,
    file: File,
    /// Raw, because the kernel writes to it while others of its buffers are looked up.
    memory: MmapRaw,
    length: usize,
    depth: usize,
}

impl RawReads {
    /// A ring with `depth` registered buffers of `length` bytes over `file`, which is open for direct I/O.
    ///
    /// # Errors
    /// The kernel's refusal of the ring or of its buffers (the memory-lock limit).
    pub fn new(file: File, length: usize, depth: usize) -> io::Result<RawReads> {
        let ring = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(depth as u32)?;
        let mut memory = MmapMut::map_anon(length * depth)?;
        let buffers: Vec<libc::iovec> = memory
            .chunks_exact_mut(length)
            .map(|chunk| libc::iovec { iov_base: chunk.as_mut_ptr().cast(), iov_len: chunk.len() })
            .collect();
        // SAFETY: the buffers lie in `memory`, which is dropped after the ring (order of the fields).
        unsafe { ring.submitter().register_buffers(&buffers)? };
        Ok(RawReads { ring, file, memory: memory.into(), length, depth })
    }

    /// Keeps `depth` reads in flight for `duration`, each at the offset that `next` says, and records how long each
    /// took. Returns the seconds that it took in all.
    ///
    /// # Errors
    /// The first read that failed or was short.
    pub fn run(
        &mut self,
        duration: Duration,
        mut next: impl FnMut() -> u64,
        latencies: &mut Histogram<u64>,
    ) -> io::Result<f64> {
        let begin = Instant::now();
        let mut submitted = vec![begin; self.depth];
        let mut in_flight = 0;
        for (buffer, submitted) in submitted.iter_mut().enumerate() {
            *submitted = Instant::now();
            self.push(buffer, next());
            in_flight += 1;
        }
        while in_flight > 0 {
            self.ring.submit_and_wait(1)?;
            let completions: Vec<(usize, i32)> =
                self.ring.completion().map(|entry| (entry.user_data() as usize, entry.result())).collect();
            let now = Instant::now();
            for (buffer, result) in completions {
                in_flight -= 1;
                match usize::try_from(result) {
                    Ok(count) if count == self.length => {}
                    Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Err(_) => return Err(io::Error::from_raw_os_error(-result)),
                }
                latencies.saturating_record((now - submitted[buffer]).as_nanos() as u64);
                if now - begin < duration {
                    submitted[buffer] = now;
                    self.push(buffer, next());
                    in_flight += 1;
                }
            }
        }
        Ok(begin.elapsed().as_secs_f64())
    }

    fn push(&mut self, buffer: usize, offset: u64) {
        assert!(buffer < self.depth);
        let start = self.memory.as_mut_ptr().wrapping_add(buffer * self.length);
        let entry = opcode::ReadFixed::new(types::Fd(self.file.as_raw_fd()), start, self.length as u32, buffer as u16)
            .offset(offset)
            .build()
            .user_data(buffer as u64);
        // SAFETY: each buffer has one read at a time, so there are never more entries than the ring has, and buffer
        // and file live as long as the ring.
        unsafe { self.ring.submission().push(&entry).expect("as many entries as buffers") };
    }
}
