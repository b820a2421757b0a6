//! What a spare process does until it is wanted ([`crate::keeper`] makes it).

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use kernel_ipc::sys::descriptors;
use zerocopy::FromBytes;

use crate::keeper::wire::{Ask, Request, VERSION};
use crate::sys::process;

/// The argument that makes a process of this binary a spare.
pub const VERB: &CStr = c"spare";
/// Its last argument: room for those of the process that it becomes, so that `ps` shows who it is.
pub(crate) const ROOM: &CStr = c"                                                                ";

/// What a spare says when it waits: the version of what it is told then.
pub(crate) const WAITS: [u8; 8] = VERSION.to_le_bytes();

/// Waits until this process is wanted, with its standard output and error and descriptor 3 those of the process that it is from
/// then on. Gives the arguments of that, without its name; `None`: it is not wanted any more.
///
/// Blocks. Needs a single-threaded process.
///
/// # Errors
/// `InvalidData`: what came is no request for a process.
pub fn wait() -> io::Result<Option<Vec<String>>> {
    let socket = process::inherited().ok_or_else(|| io::Error::other("a spare is started by a keeper"))?;
    let title = Title::find();
    warm_heap();
    descriptors::send(socket.as_fd(), &WAITS, &[], false)?;
    let mut bytes = [0; size_of::<Request>()];
    let packet = descriptors::receive(socket.as_fd(), &mut bytes, true)?;
    if packet.length == 0 {
        return Ok(None);
    }
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, "no request for a process");
    let request = Request::read_from_bytes(&bytes[..packet.length]).map_err(|_| wrong())?;
    let given = <[_; 3]>::try_from(packet.descriptors).map_err(|_| wrong())?;
    let (arguments, used) = request.arguments().ok_or_else(wrong)?;
    if request.ask() != Some(Ask::Spawn) || packet.truncated {
        return Err(wrong());
    }
    process::become_started_with(socket, given)?;
    if let Ok(title) = title {
        title.set(&arguments[..used]);
    }
    let words = arguments[..used].iter().skip(1);
    words.map(|word| word.to_str().map(str::to_owned)).collect::<Result<_, _>>().map(Some).map_err(|_| wrong())
}

/// Where the kernel finds this process's arguments.
struct Title {
    memory: File,
    begin: u64,
    bytes: usize,
}

impl Title {
    fn find() -> io::Result<Title> {
        let stat = std::fs::read_to_string("/proc/self/stat")?;
        // proc(5): `arg_start` and `arg_end` are fields 48 and 49; the second, in parentheses, may hold blanks.
        let mut fields = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace().skip(48 - 3);
        let mut number = || fields.next()?.parse::<u64>().ok();
        let (begin, end) = number().zip(number()).ok_or(io::ErrorKind::InvalidData)?;
        let memory = OpenOptions::new().write(true).open("/proc/self/mem")?;
        Ok(Title { memory, begin, bytes: end.saturating_sub(begin).min(4096) as usize })
    }

    /// Best effort: it is for people's eyes.
    fn set(&self, arguments: &[&CStr]) {
        let mut title = vec![0; self.bytes];
        let bytes = arguments.iter().flat_map(|argument| argument.to_bytes_with_nul()).copied();
        title.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        if let Some(last) = title.last_mut() {
            *last = 0;
        }
        let _ = self.memory.write_all_at(&title, self.begin);
    }
}

/// Bytes of heap that a spare has used before it is wanted.
const HEAP: usize = 4 << 20;

/// Makes the heap that long, with its pages there: what a run allocates first costs no page faults then. mallopt(3): freeing a
/// mapping raises the size from which allocations are mappings, so that the second is of the heap, which stays.
fn warm_heap() {
    for _ in 0..2 {
        drop(std::hint::black_box(vec![1u8; HEAP]));
    }
}
