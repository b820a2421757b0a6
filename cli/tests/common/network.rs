//! A network of two machines inside one: a server's and a client's namespace, joined by a pair of devices, where what the server
//! sends waits its turn in an `ifb` device of a fixed rate.
//!
//! The kernel copies what is sent without a copy when it is delivered on the same machine; until then the pages are the sender's own:
//! in the socket's queue, and in that of the device. So a page that is used again too early is seen by the client.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::Command;

use nix::sched::{CloneFlags, setns, unshare};

/// The server's address.
pub const SERVER: &str = "10.77.0.1";
const CLIENT: &str = "10.77.0.2";

/// The client's side.
pub struct Network {
    client: File,
}

impl Network {
    /// Makes both. This thread, and what it starts from now on, is in the server's.
    ///
    /// # Errors
    /// What this machine lacks for it, or this user; in words.
    pub fn enter_server() -> Result<Network, String> {
        let client = std::thread::spawn(own_namespace).join().expect("no panic")?;
        own_namespace()?;
        let inside = format!("/proc/{}/fd/{}", std::process::id(), client.as_raw_fd());
        run("ip link set lo up")?;
        run(&format!("ip link add s0 type veth peer name c0 netns {inside}"))?;
        run(&format!("ip addr add {SERVER}/24 dev s0"))?;
        run("ip link set s0 up")?;
        run("ip link add i0 type ifb")?;
        run("ip link set i0 up")?;
        run("tc qdisc add dev i0 root tbf rate 200mbit burst 64k limit 8m")?;
        run("tc qdisc add dev s0 clsact")?;
        run("tc filter add dev s0 egress protocol all u32 match u32 0 0 action mirred egress redirect dev i0")?;
        let network = Network { client };
        network.as_client(|| {
            run("ip link set lo up")?;
            run(&format!("ip addr add {CLIENT}/24 dev c0"))?;
            run("ip link set c0 up")
        })?;
        Ok(network)
    }

    /// Bytes that have gone through the `ifb` device, which only the server's side can see.
    pub fn sent(&self) -> u64 {
        let text = std::fs::read_to_string("/proc/thread-self/net/dev").expect("a namespace has devices");
        let line = text.lines().find_map(|line| line.trim().strip_prefix("i0:")).expect("the device is there");
        line.split_whitespace().nth(8).and_then(|bytes| bytes.parse().ok()).expect("a number")
    }

    /// The client's namespace, for [`enter`].
    pub fn client(&self) -> &File {
        &self.client
    }

    fn as_client<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            enter(&self.client);
            work()
        };
        std::thread::scope(|scope| scope.spawn(inside).join().expect("no panic"))
    }
}

/// Moves this thread into a namespace.
pub fn enter(namespace: &File) {
    setns(namespace, CloneFlags::CLONE_NEWNET).expect("whoever made it may enter it");
}

/// Moves this thread into a namespace of its own.
fn own_namespace() -> Result<File, String> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| errno.to_string())?;
    File::open("/proc/thread-self/ns/net").map_err(|error| error.to_string())
}

fn run(line: &str) -> Result<(), String> {
    let mut words = line.split(' ');
    let output = Command::new(words.next().unwrap_or_default()).args(words).output();
    let output = output.map_err(|error| format!("{line}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{line}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}
