//! Logbooks: memory in which a component writes what others want to see of it, over all its runs.
//!
//! - Made when a component is first started, and kept as long as the node lives: also for one that is given up, which is when
//!   somebody wants to read it.
//! - Each run gets it for writing, whoever asks for it for reading: nobody else can write it, and nobody can resize it.
//! - Nothing depends on it. Without room for it a component runs without.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use kernel_ipc::logbook;
use kernel_ipc::sys::segment::{self, SegmentWriter};

use super::records::{Kept, Kind, NumbersTag, Records};

/// The logbook of one component.
pub struct Book {
    slot: u32,
    records: Rc<Records>,
    /// For writing.
    memory: RefCell<Option<Kept>>,
}

impl Book {
    /// Of the component in this slot, which was never started.
    pub fn new(slot: u32, records: Rc<Records>) -> Book {
        Book { slot, records, memory: RefCell::default() }
    }

    /// What there was when the last supervisor died.
    pub fn recall(&self, memory: Kept) {
        self.memory.replace(Some(memory));
    }

    /// For the run that begins.
    ///
    /// # Errors
    /// Of making it, the first time.
    pub fn for_writing(&self) -> std::io::Result<OwnedFd> {
        if let Some(kept) = &*self.memory.borrow() {
            return kept.again();
        }
        let fresh = segment::memfd("atoll-logbook")?;
        segment::set_len(&fresh, logbook::BYTES)?;
        let kept = self.records.hold(Kind::Logbook, self.slot, 0, &NumbersTag::default(), fresh)?;
        let memory = kept.again();
        self.memory.replace(Some(kept));
        memory
    }

    /// For whoever wants to look; `None` if there is none.
    pub fn for_reading(&self) -> Option<OwnedFd> {
        let memory = self.memory.borrow().as_ref()?.again().ok()?;
        // Sealed by whoever comes first, this or the component.
        SegmentWriter::open_kept_for_readers(memory).ok()?.fd().try_clone_to_owned().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel_ipc::Epoch;
    use kernel_ipc::logbook::{Logbook, Reader};

    #[test]
    fn every_run_writes_the_same_logbook_and_readers_cannot() {
        let book = Book::new(1, Rc::new(Records::to_nobody()));
        assert!(book.for_reading().is_none());
        let first = Logbook::open(book.for_writing().unwrap(), Epoch(1)).unwrap();
        drop(first);
        let reader = Reader::open(book.for_reading().unwrap()).unwrap();
        assert_eq!(reader.read().unwrap().epoch, 1);
        let _second = Logbook::open(book.for_writing().unwrap(), Epoch(2)).unwrap();
        assert_eq!(reader.read().unwrap().epoch, 2);
        let for_reading = book.for_reading().unwrap();
        assert!(nix::unistd::write(&for_reading, b"x").is_err());
        assert!(SegmentWriter::open_kept(for_reading).is_err());
    }
}
