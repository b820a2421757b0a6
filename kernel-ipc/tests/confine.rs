//! What a confined component tries, and what it keeps. Each in a thread of its own, which is confined alone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::process::Command;

use kernel_ipc::sys::confine::{Confined, confine};
use kernel_ipc::sys::segment::SegmentWriter;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, gettid};

/// Runs `tries` in a thread that may listen and connect or not, beside what it had before.
fn confined<T: Send>(
    (listens, connects): (bool, bool),
    before: impl FnOnce() -> T + Send,
    tries: impl FnOnce(T, Confined) + Send,
) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let had = before();
            match confine(listens, connects) {
                Ok(taken) => tries(had, taken),
                Err(error) if [Some(libc::ENOSYS), Some(libc::EOPNOTSUPP)].contains(&error.raw_os_error()) => {
                    println!("skipped: this kernel has no Landlock");
                }
                Err(error) => panic!("{error}"),
            }
        });
        thread.join().expect("all as it should be");
    });
}

fn refused<T>(result: io::Result<T>) -> bool {
    result.err().is_some_and(|error| error.kind() == ErrorKind::PermissionDenied)
}

#[test]
fn no_file_can_be_opened_made_or_changed_and_what_is_open_stays() {
    let directory = tempfile::tempdir().expect("a directory");
    let (there, new) = (directory.path().join("there"), directory.path().join("new"));
    fs::write(&there, "text").expect("written");
    let open = || OpenOptions::new().read(true).write(true).open(&there).expect("it is there");
    confined((false, false), open, |mut file, _| {
        assert!(refused(File::open(&there)) && refused(File::open("/etc/passwd")) && refused(fs::read_dir("/")));
        assert!(refused(File::create(&new)) && refused(fs::remove_file(&there)) && refused(fs::rename(&there, &new)));
        assert!(refused(fs::hard_link(&there, &new)) && refused(std::os::unix::fs::symlink(&there, &new)));
        assert!(refused(Command::new("/bin/true").spawn().map(drop)), "nothing can be executed");
        let mut text = String::new();
        file.read_to_string(&mut text).expect("it is open");
        file.write_all(b" and more").expect("also for writing");
        file.set_len(3).expect("and can be cut");
        assert_eq!(text, "text");
        // What it makes itself has no path.
        let memory = SegmentWriter::create("mine", 4096).expect("memory");
        assert!(File::open(format!("/proc/self/fd/{}", memory.fd().as_raw_fd())).is_ok());
    });
    assert_eq!(fs::read_to_string(&there).expect("for everybody else it is there"), "tex");
}

#[test]
fn nobody_else_can_be_signalled_or_traced() {
    let mut other = Command::new("sleep").arg("60").spawn().expect("a process");
    let pid = other.id() as i32;
    confined(
        (false, false),
        || (),
        |(), taken| {
            assert!(refused(File::open(format!("/proc/{pid}/mem"))));
            // To follow this link takes the right to trace, and none to files.
            assert!(refused(fs::read_link(format!("/proc/{pid}/exe"))));
            assert!(fs::read_link("/proc/thread-self/exe").is_ok(), "its own");
            if taken.signals {
                assert_eq!(kill(Pid::from_raw(pid), Signal::SIGKILL), Err(nix::errno::Errno::EPERM));
                let nobodys = SocketAddr::from_abstract_name(b"atoll-confined").expect("a name");
                assert!(refused(UnixStream::connect_addr(&nobodys)) || nobody_listens(&nobodys));
            } else {
                println!("skipped: this kernel's Landlock does not keep signals");
            }
        },
    );
    assert!(other.try_wait().expect("a child").is_none(), "it lives");
    other.kill().expect("by this thread it can");
    other.wait().expect("reaped");
}

/// There is no such socket: the kernel looks for it first.
fn nobody_listens(address: &SocketAddr) -> bool {
    UnixStream::connect_addr(address).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

#[test]
fn tcp_is_what_was_asked_for() {
    let there = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = there.local_addr().expect("an address");
    for (listens, connects) in [(false, false), (true, false), (false, true), (true, true)] {
        let before = || TcpStream::connect(address).expect("before");
        confined((listens, connects), before, |mut connected, taken| {
            if !taken.tcp {
                return println!("skipped: this kernel's Landlock does not keep TCP");
            }
            let (bound, made) = (TcpListener::bind("127.0.0.1:0"), TcpStream::connect(address));
            assert_eq!((bound.is_ok(), made.is_ok()), (listens, connects), "{listens} {connects}");
            assert!(bound.is_ok() || refused(bound));
            assert!(made.is_ok() || refused(made));
            connected.write_all(b"x").expect("what is connected stays so");
        });
    }
}

#[test]
fn it_is_for_this_thread_and_for_what_it_starts() {
    confined((false, false), gettid, |before, _| {
        assert_eq!(before, gettid());
        let child = std::thread::spawn(|| refused(File::open("/etc/passwd")));
        assert!(child.join().expect("no panic"));
    });
    assert!(File::open("/etc/passwd").is_ok());
}
