//! CRC-32C (CRC-32/ISCSI) of memory that another process may be writing, alone or fused with a copy.
//!
//! * Each byte is read once, by an aligned volatile load through a raw pointer: no reference into shared memory exists,
//!   and the sum is of exactly the bytes that were copied. What a writer changes meanwhile changes the sum, nothing else.
//! * The processor's crc32 instruction has a latency of three cycles and a throughput of one: three independent sums
//!   run side by side, and are joined by multiplying with x^(8 n) mod P from a table (the method of Mark Adler's
//!   crc32c.c). Without the instruction: a table, byte by byte.

use super::segment::{OutOfBounds, SegmentReader, SegmentWriter, copy_to_shared};

/// The polynomial, reflected.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// Bytes of each of three lanes. 3 × 1360 + 16 = 4096: a block of a file system is one round and two words.
const LONG: usize = 1360;
/// For what is shorter.
const SHORT: usize = 128;

const _: () = assert!(LONG.is_multiple_of(8) && SHORT.is_multiple_of(8));

static AFTER_LONG: [[u32; 256]; 4] = shift_table(LONG);
static AFTER_SHORT: [[u32; 256]; 4] = shift_table(SHORT);
static BYTES: [u32; 256] = byte_table();

/// The checksum of `bytes`, continuing from `crc`, the checksum of what came before (0: nothing).
pub fn append(crc: u32, bytes: &[u8]) -> u32 {
    // SAFETY: a slice is readable.
    unsafe { sum(crc, bytes.as_ptr(), bytes.len()) }
}

/// The checksum of `len` bytes at `offset` of `segment`, continuing from `crc`.
///
/// # Errors
/// [`OutOfBounds`]; nothing was read.
pub fn append_segment(crc: u32, segment: &SegmentReader, offset: usize, len: usize) -> Result<u32, OutOfBounds> {
    inside(segment.len(), offset, len)?;
    // SAFETY: the range is inside the mapping, whose size is sealed and which lives as long as `segment`.
    Ok(unsafe { sum(crc, segment.as_ptr().add(offset), len) })
}

/// As [`append_segment`], of a segment that this process writes itself.
///
/// # Errors
/// [`OutOfBounds`]; nothing was read.
pub fn append_own(crc: u32, segment: &SegmentWriter, offset: usize, len: usize) -> Result<u32, OutOfBounds> {
    inside(segment.len(), offset, len)?;
    // SAFETY: as in `append_segment`.
    Ok(unsafe { sum(crc, segment.as_mut_ptr().cast_const().add(offset), len) })
}

/// Copies `len` bytes from `from` of `source` to `to` of `target`, and returns the checksum of what was copied,
/// continuing from `crc`.
///
/// # Errors
/// [`OutOfBounds`]; nothing was copied.
pub fn copy_segment(
    crc: u32,
    source: &SegmentReader,
    from: usize,
    target: &SegmentWriter,
    to: usize,
    len: usize,
) -> Result<u32, OutOfBounds> {
    inside(source.len(), from, len)?;
    inside(target.len(), to, len)?;
    // SAFETY: both ranges are inside their mappings, which live as long as the segments; the target is writable.
    Ok(unsafe { copy(crc, source.as_ptr().add(from), target.as_mut_ptr().add(to), len) })
}

/// Copies `bytes` to `to` of `target`, and returns their checksum, continuing from `crc`.
///
/// # Errors
/// [`OutOfBounds`]; nothing was copied.
pub fn copy_bytes(crc: u32, bytes: &[u8], target: &SegmentWriter, to: usize) -> Result<u32, OutOfBounds> {
    inside(target.len(), to, bytes.len())?;
    // SAFETY: as in `copy_segment`; a slice is readable.
    Ok(unsafe { copy(crc, bytes.as_ptr(), target.as_mut_ptr().add(to), bytes.len()) })
}

fn inside(total: usize, offset: usize, len: usize) -> Result<(), OutOfBounds> {
    match offset.checked_add(len) {
        Some(end) if end <= total => Ok(()),
        _ => Err(OutOfBounds),
    }
}

/// # Safety
/// `from .. from + len` is mapped and readable.
unsafe fn sum(crc: u32, from: *const u8, len: usize) -> u32 {
    // SAFETY: the caller's duty; without `COPY` nothing is stored.
    unsafe { dispatch::<false>(crc, from, std::ptr::null_mut(), len) }
}

/// # Safety
/// `from .. from + len` is mapped and readable, `to .. to + len` mapped and writable; no reference into either exists,
/// but for a shared one into the source.
unsafe fn copy(crc: u32, mut from: *const u8, mut to: *mut u8, mut len: usize) -> u32 {
    if (from as usize) % 8 == (to as usize) % 8 {
        // SAFETY: the caller's duty, and both are aligned alike.
        return unsafe { dispatch::<true>(crc, from, to, len) };
    }
    // Stores would not be aligned: go through private memory that is in the cache.
    let mut bounce = [0u64; 512];
    let mut crc = crc;
    while len > 0 {
        let bytes = len.min(size_of_val(&bounce));
        // Begin in the word as the source does, so that both steps are aligned alike.
        let skew = (from as usize) % 8;
        let bytes = bytes.min(size_of_val(&bounce) - skew);
        let private = bounce.as_mut_ptr().cast::<u8>();
        // SAFETY: `skew + bytes` is at most the bounce's size; the source is the caller's duty.
        crc = unsafe { dispatch::<true>(crc, from, private.add(skew), bytes) };
        // SAFETY: these bytes were just written, and nothing writes them while the slice exists; the target is the
        // caller's duty, and the bounce is no part of it.
        unsafe {
            copy_to_shared(to, std::slice::from_raw_parts(private.add(skew), bytes));
            from = from.add(bytes);
            to = to.add(bytes);
        }
        len -= bytes;
    }
    crc
}

/// # Safety
/// `from .. from + len` is mapped and readable. With `COPY`, `to .. to + len` is mapped and writable, and `to` is
/// aligned to words as `from` is.
unsafe fn dispatch<const COPY: bool>(crc: u32, from: *const u8, to: *mut u8, len: usize) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("sse4.2") {
        // SAFETY: the instruction is there; the rest is the caller's duty.
        return unsafe { with_sse42::<COPY>(crc, from, to, len) };
    }
    #[cfg(target_arch = "aarch64")]
    if std::arch::is_aarch64_feature_detected!("crc") {
        // SAFETY: the instruction is there; the rest is the caller's duty.
        return unsafe { with_crc::<COPY>(crc, from, to, len) };
    }
    // SAFETY: the caller's duty.
    unsafe { with_table::<COPY>(crc, from, to, len) }
}

/// The same loop around each processor's instruction: intrinsics are only inlined into functions of their feature.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! interleaved {
    ($name:ident, $feature:literal, $byte:expr, $word:expr) => {
        /// # Safety
        /// As [`dispatch`], and the processor has the feature.
        #[target_feature(enable = $feature)]
        unsafe fn $name<const COPY: bool>(crc: u32, mut from: *const u8, mut to: *mut u8, mut len: usize) -> u32 {
            /// # Safety
            /// Both words are inside the caller's ranges, and aligned.
            #[inline(always)]
            unsafe fn word<const COPY: bool>(from: *const u8, to: *mut u8, at: usize) -> u64 {
                // SAFETY: the caller's duty.
                unsafe {
                    let word = from.add(at).cast::<u64>().read_volatile();
                    if COPY {
                        to.add(at).cast::<u64>().write_volatile(word);
                    }
                    word
                }
            }
            let (byte_step, word_step) = ($byte, $word);
            let mut crc = !crc;

            // SAFETY: every access is at an offset below `len`, which shrinks by what is skipped; words are
            // only read after the loop over bytes has aligned the pointers.
            unsafe {
                while len > 0 && !(from as usize).is_multiple_of(8) {
                    let byte = from.read_volatile();
                    if COPY {
                        to.write_volatile(byte);
                        to = to.add(1);
                    }
                    crc = byte_step(crc, byte);
                    (from, len) = (from.add(1), len - 1);
                }
                for (lane, table) in [(LONG, &AFTER_LONG), (SHORT, &AFTER_SHORT)] {
                    while len >= 3 * lane {
                        let (mut first, mut second, mut third) = (crc, 0, 0);
                        let mut at = 0;
                        while at < lane {
                            first = word_step(first, u64::from_le(word::<COPY>(from, to, at)));
                            second = word_step(second, u64::from_le(word::<COPY>(from, to, lane + at)));
                            third = word_step(third, u64::from_le(word::<COPY>(from, to, 2 * lane + at)));
                            at += 8;
                        }
                        crc = shift(table, shift(table, first) ^ second) ^ third;
                        from = from.add(3 * lane);
                        if COPY {
                            to = to.add(3 * lane);
                        }
                        len -= 3 * lane;
                    }
                }
                let mut at = 0;
                while len - at >= 8 {
                    crc = word_step(crc, u64::from_le(word::<COPY>(from, to, at)));
                    at += 8;
                }
                while at < len {
                    let byte = from.add(at).read_volatile();
                    if COPY {
                        to.add(at).write_volatile(byte);
                    }
                    crc = byte_step(crc, byte);
                    at += 1;
                }
            }
            !crc
        }
    };
}

#[cfg(target_arch = "x86_64")]
interleaved!(
    with_sse42,
    "sse4.2",
    |crc: u32, byte: u8| std::arch::x86_64::_mm_crc32_u8(crc, byte),
    |crc: u32, word: u64| std::arch::x86_64::_mm_crc32_u64(crc.into(), word) as u32
);

#[cfg(target_arch = "aarch64")]
interleaved!(with_crc, "crc", |crc: u32, byte: u8| std::arch::aarch64::__crc32cb(crc, byte), |crc: u32, word: u64| {
    std::arch::aarch64::__crc32cd(crc, word)
});

/// # Safety
/// As [`dispatch`].
unsafe fn with_table<const COPY: bool>(crc: u32, from: *const u8, to: *mut u8, len: usize) -> u32 {
    let mut crc = !crc;
    for at in 0..len {
        // SAFETY: inside the caller's ranges.
        unsafe {
            let byte = from.add(at).read_volatile();
            if COPY {
                to.add(at).write_volatile(byte);
            }
            crc = BYTES[usize::from(crc as u8 ^ byte)] ^ crc >> 8;
        }
    }
    !crc
}

/// `crc` as it is after as many zero bytes as the table is for.
#[inline]
fn shift(table: &[[u32; 256]; 4], crc: u32) -> u32 {
    let [a, b, c, d] = crc.to_le_bytes();
    table[0][usize::from(a)] ^ table[1][usize::from(b)] ^ table[2][usize::from(c)] ^ table[3][usize::from(d)]
}

const fn byte_table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

/// What each byte of a checksum becomes after `zeros` zero bytes. Linear, so 32 single bits say everything.
const fn shift_table(zeros: usize) -> [[u32; 256]; 4] {
    let bytes = byte_table();
    let mut bits = [0u32; 32];
    let mut bit = 0;
    while bit < 32 {
        let mut crc = 1u32 << bit;
        let mut n = 0;
        while n < zeros {
            crc = bytes[(crc & 0xff) as usize] ^ crc >> 8;
            n += 1;
        }
        bits[bit] = crc;
        bit += 1;
    }
    let mut table = [[0u32; 256]; 4];
    let mut k = 0;
    while k < 4 {
        let mut byte = 0;
        while byte < 256 {
            let mut bit = 0;
            while bit < 8 {
                if byte >> bit & 1 == 1 {
                    table[k][byte] ^= bits[8 * k + bit];
                }
                bit += 1;
            }
            byte += 1;
        }
        k += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// Reproducible bytes without pattern.
    fn noise(len: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        (0..len)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            })
            .collect()
    }

    fn reference(bytes: &[u8]) -> u32 {
        crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
    }

    #[test]
    fn the_checksum_is_that_of_the_catalogue() {
        assert_eq!(append(0, b"123456789"), 0xe306_9283);
        assert_eq!(append(append(0, b"1234"), b"56789"), 0xe306_9283);
        assert_eq!(append(0, b""), 0);
    }

    #[test]
    fn every_length_and_alignment_gives_the_checksum_of_crc_fast() {
        let bytes = noise(20_000);
        for start in 0..9 {
            for len in (0..600).chain([1023, 1024, 4079, 4080, 4081, 4096, 8192, 12_288, 19_000]) {
                let part = &bytes[start..start + len];
                let expected = reference(part);
                assert_eq!(append(0, part), expected, "{len} bytes at {start}");
                // SAFETY: `part` is readable.
                let table = unsafe { with_table::<false>(0, part.as_ptr(), std::ptr::null_mut(), len) };
                assert_eq!(table, expected, "{len} bytes at {start}, by table");
            }
        }
    }

    #[test]
    fn a_fused_copy_copies_what_it_sums_whatever_the_alignments() {
        let bytes = noise(20_000);
        let source = SegmentWriter::create("source", bytes.len()).expect("memory");
        source.copy_in(0, &bytes).expect("it fits");
        let source =
            SegmentReader::open(source.fd().try_clone_to_owned().expect("dup"), bytes.len()).expect("a sealed segment");
        for (from, to, len) in
            [(0, 0, 20_000), (8, 16, 4096), (3, 3, 9000), (1, 2, 9001), (7, 0, 4097), (5, 9, 7), (0, 4, 0)]
        {
            let target = SegmentWriter::create("target", 20_016).expect("memory");
            let crc = copy_segment(0, &source, from, &target, to, len).expect("inside");
            assert_eq!(crc, reference(&bytes[from..from + len]), "{len} bytes from {from} to {to}");
            let mut all = vec![1; target.len()];
            target.copy_out(0, &mut all).expect("all of it");
            assert_eq!(&all[to..to + len], &bytes[from..from + len], "{len} bytes from {from} to {to}");
            assert!(all[..to].iter().chain(&all[to + len..]).all(|byte| *byte == 0), "nothing else was written");
            assert_eq!(copy_bytes(0, &bytes[from..from + len], &target, to), Ok(crc));
        }
    }

    #[test]
    fn ranges_beyond_a_segment_are_refused() {
        let own = SegmentWriter::create("own", 100).expect("memory");
        let reader = SegmentReader::open(own.fd().try_clone_to_owned().expect("dup"), 100).expect("sealed");
        for (offset, len) in [(0, 101), (100, 1), (usize::MAX, 2), (1, usize::MAX)] {
            assert_eq!(append_segment(0, &reader, offset, len), Err(OutOfBounds));
            assert_eq!(append_own(0, &own, offset, len), Err(OutOfBounds));
            assert_eq!(copy_segment(0, &reader, offset, &own, 0, len), Err(OutOfBounds));
            assert_eq!(copy_segment(0, &reader, 0, &own, offset, len), Err(OutOfBounds));
        }
        assert_eq!(append_segment(0, &reader, 100, 0), Ok(0));
    }

    #[test]
    fn the_rate_is_printed() {
        let len = 8 << 20;
        let source = SegmentWriter::create("source", len).expect("memory");
        source.copy_in(0, &noise(len)).expect("it fits");
        let reader = SegmentReader::open(source.fd().try_clone_to_owned().expect("dup"), len).expect("sealed");
        let target = SegmentWriter::create("target", len).expect("memory");
        let rate = |what: &str, run: &dyn Fn() -> u32| {
            let expected = run();
            let begin = Instant::now();
            for _ in 0..8 {
                assert_eq!(run(), expected);
            }
            println!("{what}: {:.1} GB/s", 8.0 * len as f64 / begin.elapsed().as_secs_f64() / 1e9);
        };
        rate("crc32c of a region, 8 MiB", &|| append_segment(0, &reader, 0, len).expect("inside"));
        rate("crc32c of a region, 64 KiB again and again", &|| {
            (0..128).fold(0, |crc, _| append_segment(crc, &reader, 0, 1 << 16).expect("inside"))
        });
        rate("copy and crc32c, 8 MiB", &|| copy_segment(0, &reader, 0, &target, 0, len).expect("inside"));
        rate("copy and crc32c, not aligned alike", &|| {
            copy_segment(0, &reader, 0, &target, 4, len - 4).expect("inside")
        });
    }
}
