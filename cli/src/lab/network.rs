//! What the two nodes are in: each in a network namespace of its own, with a pair of devices between them, or both on addresses of
//! the loopback.
//!
//! * A [`Side`] is a thread that stays in the network of its node: what it starts is in that network, and ends when the thread does.
//! * Namespaces have names, by which people can enter them (`ip netns exec NAME …`), and are removed by these when they are dropped.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;

use nix::sched::{CloneFlags, setns};
use nix::unistd::geteuid;

use crate::output::{self, Failed};

/// Of the nodes, in their namespaces.
const IN_NAMESPACES: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 0, 1), Ipv4Addr::new(10, 77, 0, 2)];

/// Names of namespaces; dropped, they and all that is in them are gone.
pub struct Namespaces {
    names: [String; 2],
}

impl Namespaces {
    /// What they are called in a lab of this process.
    pub fn names() -> [String; 2] {
        ["a", "b"].map(|node| format!("atoll-lab-{}-{node}", std::process::id()))
    }

    /// Makes both, and joins them.
    ///
    /// # Errors
    /// What this machine lacks for it, or this user; in words. Nothing is left behind.
    pub fn make() -> Result<Namespaces, String> {
        if !geteuid().is_root() {
            return Err("only root can make network namespaces with devices in them".into());
        }
        let namespaces = Namespaces { names: Namespaces::names() };
        let [a, b] = &namespaces.names;
        for name in [a, b] {
            ip(&format!("netns add {name}"))?;
        }
        ip(&format!("link add lab0 netns {a} type veth peer name lab0 netns {b}"))?;
        for (name, address) in namespaces.names.iter().zip(IN_NAMESPACES) {
            ip(&format!("-n {name} addr add {address}/24 dev lab0"))?;
            for device in ["lo", "lab0"] {
                ip(&format!("-n {name} link set {device} up"))?;
            }
        }
        Ok(namespaces)
    }

    /// Those that a lab has left behind which was killed.
    pub fn left(names: [String; 2]) -> Namespaces {
        Namespaces { names }
    }

    fn file(&self, node: usize) -> io::Result<File> {
        File::open(Path::new("/run/netns").join(&self.names[node]))
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.names {
            if Path::new("/run/netns").join(name).exists()
                && let Err(error) = ip(&format!("netns del {name}"))
            {
                output::message(&error);
            }
        }
    }
}

fn ip(arguments: &str) -> Result<(), String> {
    let failed = |error: &str| Err(format!("ip {arguments}: {error}"));
    match Command::new("ip").args(arguments.split(' ')).output() {
        Err(error) => failed(&output::reason(&error)),
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => failed(String::from_utf8_lossy(&output.stderr).trim()),
    }
}

/// Moves this thread into the namespace of that name, if there is one.
///
/// # Errors
/// This user may not.
pub fn enter(name: &str) -> Result<(), Failed> {
    let failed = |error: io::Error| Failed::new(format!("network namespace {name}: {}", output::reason(&error)));
    match File::open(Path::new("/run/netns").join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
        Ok(namespace) => setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|errno| failed(errno.into())),
    }
}

/// Where the nodes are called, and where they listen.
pub struct Network {
    /// `Err`: why there are none.
    pub namespaces: Result<Namespaces, String>,
}

impl Network {
    /// The name of a node's namespace.
    pub fn namespace(&self, node: usize) -> Option<&str> {
        self.namespaces.as_ref().ok().map(|namespaces| namespaces.names[node].as_str())
    }

    /// Where a node is called.
    pub fn called(&self, node: usize) -> IpAddr {
        match self.namespaces {
            Ok(_) => IN_NAMESPACES[node].into(),
            Err(_) => loopback(1 + node as u8),
        }
    }

    /// Where it listens behind a relay: it is called where that listens.
    pub fn behind_relay(&self, node: usize) -> IpAddr {
        match self.namespaces {
            Ok(_) => Ipv4Addr::LOCALHOST.into(),
            Err(_) => loopback(3 + node as u8),
        }
    }

    /// The side of a node.
    ///
    /// # Errors
    /// Its network cannot be entered.
    pub fn side(&self, node: usize) -> Result<Side, Failed> {
        let namespace = self.namespaces.as_ref().ok().map(|namespaces| namespaces.file(node)).transpose();
        Side::start(namespace.map_err(|error| Failed::new(format!("a network namespace: {}", output::reason(&error))))?)
    }
}

/// An address of this machine that no other lab has: all of 127.0.0.0/8 is its own.
fn loopback(last: u8) -> IpAddr {
    let [.., high, low] = std::process::id().to_be_bytes();
    IpAddr::from([127, 200 + high % 50, low, last])
}

/// Does things in the network of a node.
pub struct Side {
    work: mpsc::Sender<Box<dyn FnOnce() + Send>>,
}

impl Side {
    fn start(namespace: Option<File>) -> Result<Side, Failed> {
        let (work, todo) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let (entered, has_entered) = mpsc::channel();
        std::thread::spawn(move || {
            let inside = namespace.map_or(Ok(()), |namespace| setns(namespace, CloneFlags::CLONE_NEWNET));
            // Who started this waits for it.
            let _ = entered.send(inside);
            todo.iter().take_while(|_| inside.is_ok()).for_each(|work| work());
        });
        let inside = has_entered.recv().expect("it says so first");
        inside.map_err(|errno| Failed::new(format!("a network namespace cannot be entered: {}", errno.desc())))?;
        Ok(Side { work })
    }

    /// Does this there, and waits for it.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        let work = move || {
            // Who asked waits for it.
            let _ = done.send(work());
        };
        self.work.send(Box::new(work)).expect("it lives as long as this");
        result.recv().expect("what is done there does not panic")
    }
}
