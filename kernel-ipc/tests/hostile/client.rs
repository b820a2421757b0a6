//! A client that writes what no correct client writes.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, Release};

use kernel_ipc::link::shm;
use kernel_ipc::sys::segment::SegmentWriter;
use kernel_ipc::wire::{Extent, Handle, LeaseName, Shape, Submission, control, header};

use super::common::random::Random;
use super::common::{HANG, JOIN, SLEEP};

/// A session's measures.
pub fn any_shape(random: &mut Random) -> Shape {
    let slots = random.pick(&[1, 2, 16, 64]);
    Shape { slots, window_bytes: random.pick(&[4096, 4096, 8192]) }
}

/// A hostile client's half of one session.
pub struct HostileClient {
    pub segment: Arc<SegmentWriter>,
    pub shape: Shape,
    pub position: u64,
    seqs: [u64; 80],
    /// A lease of the honest client.
    stolen: LeaseName,
}

impl HostileClient {
    pub fn new(random: &mut Random, stolen: LeaseName) -> HostileClient {
        let shape = any_shape(random);
        let segment = Arc::new(shm::client_segment(shape).expect("a segment"));
        HostileClient { segment, shape, position: 0, seqs: [0; 80], stolen }
    }

    pub fn fd(&self) -> OwnedFd {
        self.segment.fd().try_clone_to_owned().expect("dup")
    }

    /// Does something that the host may notice.
    pub fn act(&mut self, random: &mut Random) {
        match random.below(16) {
            0 => self.scribble_header(random),
            1 => self.scribble_anywhere(random),
            2 => {
                // A descriptor of random bits, with the lap that makes it look complete.
                let mut line = [0; 8].map(|_: u64| random.next());
                line[0] = line[0] & !0xffff | u64::from(self.shape.lap(self.position));
                self.publish(line);
            }
            _ => self.call(random),
        }
    }

    /// A call that is right but for some of its fields.
    fn call(&mut self, random: &mut Random) {
        let slots = u64::from(self.shape.all_slots());
        // In turn, so that the call before on the same slot has mostly been answered.
        let mut slot = (self.position % slots) as u16;
        if random.one_in(40) {
            slot = random.pick(&[slots as u16, slots as u16 + 1, 255, u16::MAX]);
        }
        let last = &mut self.seqs[usize::from(slot) % 80];
        *last += 1;
        let seq = if random.one_in(40) { random.pick(&[0, *last - 1, u64::MAX, 1 << 40]) } else { *last };
        let control = self.shape.is_control(slot);
        let mut operation = if control { random.below(4) as u16 + 1 } else { random.below(9) as u16 + 1 };
        // A handler that sleeps is for other tests: it would keep closed sessions in memory.
        if !control && (operation == SLEEP || (operation == HANG && !random.one_in(8))) {
            operation = JOIN;
        }
        if random.one_in(30) {
            operation = random.pick(&[0, 5, 99, 255, u16::MAX]);
        }
        let lengths = [0, 1, 2, 8, 16, 17, 24, 32, 64, 1000, 3776, 4072, 4096];
        let mut extent = Extent {
            length: random.pick(&lengths),
            capabilities: if control { 0 } else { random.pick(&[0, 0, 0, 1, 1, 2, 16]) },
            leases: if control { 0 } else { random.pick(&[0, 0, 0, 1, 8]) },
        };
        if random.one_in(30) {
            extent.length = random.pick(&[4097, 8193, 65536, 1 << 31, u32::MAX, u32::MAX - 15]);
        }
        if random.one_in(30) {
            extent.capabilities = random.pick(&[17, 128, 255]);
            extent.leases = random.pick(&[9, 128, 255]);
        }
        let handle = Handle {
            index: random.pick(&[0, 0, 0, 1, 2, 17, u32::MAX]),
            generation: random.pick(&[1, 1, 1, 0, 2, u32::MAX]),
        };
        let submission = Submission {
            slot,
            operation,
            seq,
            extent,
            handle,
            deadline: random.pick(&[0, 0, 0, 1, u64::MAX]),
            trace: random.next(),
            inline: [random.next(), random.next()],
        };
        self.fill_window(random, slot);
        let mut line = submission.to_raw().0;
        if random.one_in(30) {
            line[random.below(8) as usize] ^= 1 << random.below(64);
        }
        line[0] = line[0] & !0xffff | u64::from(self.shape.lap(self.position));
        self.publish(line);
    }

    fn publish(&mut self, line: [u64; 8]) {
        self.segment.store_line(self.shape.entry_offset(self.position), &line);
        self.position += 1;
        self.segment.store_u64(header::TAIL, self.position, Release);
    }

    /// Names: guessed handles, the honest client's lease, garbage.
    fn fill_window(&mut self, random: &mut Random, slot: u16) {
        if slot >= self.shape.all_slots() {
            return;
        }
        let mut window = Vec::new();
        for _ in 0..random.pick(&[0, 1, 2, 8]) {
            match random.below(4) {
                0 => window.extend(self.stolen.to_bytes()),
                1 => window.extend(&self.stolen.to_bytes()[..control::LONG_ENTRY]),
                2 => window.extend(Handle { index: random.below(4) as u32, generation: 1 }.to_word().to_le_bytes()),
                _ => window.extend([random.next(), random.next()].map(u64::to_le_bytes).concat()),
            }
        }
        self.segment.copy_in(self.shape.window_offset(slot), &window).expect("inside");
    }

    fn scribble_header(&mut self, random: &mut Random) {
        let words =
            [header::TAIL, header::HEAD, header::WANTS_WAKE, header::SLOTS, header::EPOCH, header::RING_ENTRIES];
        let value = random.next();
        let value = random.pick(&[0, 1, u64::MAX, 1 << 31, self.position + 1, value]);
        self.segment.store_u64(random.pick(&words) & !7, value, Release);
        if random.one_in(4) {
            self.segment.store_u32(header::STATE, random.pick(&[0, 1, 2, 3, u32::MAX]), Release);
        }
    }

    fn scribble_anywhere(&mut self, random: &mut Random) {
        for _ in 0..random.below(64) {
            let offset = random.below(self.segment.len() as u64 / 8) as usize * 8;
            self.segment.store_u64(offset, random.next(), Relaxed);
        }
    }
}
