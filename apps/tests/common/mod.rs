//! A whole web server in one thread: httpd, the network server on real sockets, and a file system of a few files whose
//! bytes are in one region. Only the sessions are in-process; leases, pins and sockets are real.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use apps::httpd::server::{Httpd, Limits};
use kernel_ipc::component::Counters;
use kernel_ipc::interface::{Connect, Connection, Granted, LeasePart, NewCap, Object};
use kernel_ipc::lease::{Lend, Lender, Mapper, PinSegment, Region, RegionReader};
use kernel_ipc::runtime::{self, Runtime};
use kernel_ipc::session::{Call, HostSession, SessionInfo, in_process};
use kernel_ipc::sys::segment::SegmentReader;
use kernel_ipc::wire::Shape;
use kernel_ipc::{CallError, Cause, Epoch, Failure, Incarnation, LenderId, RegionId, Rights, SessionId};
use net_server::host::{Options, Root, Stack};
use protocol::fs::{
    self, CheckError, CheckPage, CreateError, DirectoryPage, Kind, LookupError, Name, Path, ReadError, ReaddirError,
    RemoveError, RenameError, Stat, StatError, Statfs, SyncError, WriteError,
};
use protocol::net;

const HTTPD: Incarnation = Incarnation(7);
const LENDER: LenderId = LenderId(3);
const REGION: RegionId = RegionId(5);
const UNKNOWN_REGION: RegionId = RegionId(6);
const EPOCH: Epoch = Epoch(1);

/// Files by path; content is a range of the region.
#[derive(Default)]
pub struct Files {
    files: Vec<(String, u64, u64)>,
    bytes: Vec<u8>,
    /// Longest lease that a read gives.
    pub lease_bytes: u64,
    /// The path and offset at which reading fails.
    pub broken: Option<(String, u64)>,
    /// The path and offset from which leases name a region that the network server does not know.
    pub stale: Option<(String, u64)>,
}

impl Files {
    pub fn new() -> Files {
        Files { lease_bytes: fs::EXTENT_MAX.into(), ..Files::default() }
    }

    pub fn add(&mut self, path: &str, bytes: &[u8]) {
        self.files.push((path.to_owned(), self.bytes.len() as u64, bytes.len() as u64));
        self.bytes.extend_from_slice(bytes);
    }

    fn is_directory(&self, path: &str) -> bool {
        path.is_empty() || self.files.iter().any(|(file, ..)| file.starts_with(&format!("{path}/")))
    }
}

/// An index into [`Files`]; the root and directories are beyond its end.
#[derive(Clone, Copy)]
pub struct Node(u64);

impl Object for Node {
    type Kind = fs::Node;
    fn to_words(&self) -> [u64; 2] {
        [self.0, 0]
    }
    fn from_words([number, _]: [u64; 2]) -> Node {
        Node(number)
    }
}

fn refused<T, E>() -> Result<T, CallError<E>> {
    let Failure { cause, executed } = Failure::not_executed(Cause::Refused);
    Err(CallError::Failed { cause, executed })
}

impl fs::Handler for Files {
    type Node = Node;

    async fn open(
        &self,
        _: &Call,
        _: Granted<Node>,
        path: Path<'_>,
        want: Rights,
    ) -> Result<(NewCap<Node>, Stat), CallError<LookupError>> {
        let path = std::str::from_utf8(path.as_bytes()).map_err(|_| LookupError::NotFound)?;
        let stat = |inode, size, kind| Stat {
            inode,
            size,
            blocks: 0,
            modified_ns: 784_111_777_000_000_000,
            version: 1,
            links: 1,
            kind,
        };
        if let Some(at) = self.files.iter().position(|(file, ..)| file == path) {
            let inode = at as u64;
            return Ok((NewCap::new(Node(inode), want), stat(inode, self.files[at].2, Kind::File)));
        }
        if self.is_directory(path) {
            return Ok((NewCap::new(Node(u64::MAX), want), stat(u64::MAX, 0, Kind::Directory)));
        }
        let below_file = self.files.iter().any(|(file, ..)| path.starts_with(&format!("{file}/")));
        Err(if below_file { LookupError::NotADirectory } else { LookupError::NotFound }.into())
    }

    async fn read(
        &self,
        _: &Call,
        node: Granted<Node>,
        offset: u64,
        len: u32,
    ) -> Result<Option<Lend>, CallError<ReadError>> {
        // A file system that answers later, as a disk does.
        runtime::yield_now().await;
        let Some((path, start, size)) = self.files.get(node.object.0 as usize) else {
            return Err(ReadError::IsADirectory.into());
        };
        if self.broken.as_ref().is_some_and(|(broken, from)| broken == path && offset >= *from) {
            return Err(ReadError::Corrupt { block: 9 }.into());
        }
        let length = u64::from(len).min(size.saturating_sub(offset)).min(self.lease_bytes);
        let stale = self.stale.as_ref().is_some_and(|(stale, from)| stale == path && offset >= *from);
        let region = if stale { UNKNOWN_REGION } else { REGION };
        let lend = Lend { region, offset: start + offset, length, source: None, keep: Rc::new(()) };
        Ok((length > 0).then_some(lend))
    }

    async fn create(
        &self,
        _: &Call,
        _: Granted<Node>,
        _: Name<'_>,
        _: Rights,
    ) -> Result<(NewCap<Node>, Stat), CallError<CreateError>> {
        refused()
    }
    async fn mkdir(&self, _: &Call, _: Granted<Node>, _: Name<'_>) -> Result<Stat, CallError<CreateError>> {
        refused()
    }
    async fn unlink(&self, _: &Call, _: Granted<Node>, _: Name<'_>) -> Result<(), CallError<RemoveError>> {
        refused()
    }
    async fn rmdir(&self, _: &Call, _: Granted<Node>, _: Name<'_>) -> Result<(), CallError<RemoveError>> {
        refused()
    }
    async fn rename(
        &self,
        _: &Call,
        _: Granted<Node>,
        _: Name<'_>,
        _: Granted<Node>,
        _: Name<'_>,
        _: bool,
    ) -> Result<(), CallError<RenameError>> {
        refused()
    }
    async fn stat(&self, _: &Call, _: Granted<Node>) -> Result<Stat, CallError<StatError>> {
        refused()
    }
    async fn lookup(&self, _: &Call, _: Granted<Node>, _: Path<'_>) -> Result<Stat, CallError<LookupError>> {
        refused()
    }
    async fn write(&self, _: &Call, _: Granted<Node>, _: u64, _: &[u8]) -> Result<(), CallError<WriteError>> {
        refused()
    }
    async fn write_lease(&self, _: &Call, _: Granted<Node>, _: u64, _: LeasePart) -> Result<(), CallError<WriteError>> {
        refused()
    }
    async fn append(&self, _: &Call, _: Granted<Node>, _: &[u8]) -> Result<u64, CallError<WriteError>> {
        refused()
    }
    async fn truncate(&self, _: &Call, _: Granted<Node>, _: u64) -> Result<(), CallError<WriteError>> {
        refused()
    }
    async fn readdir(
        &self,
        _: &Call,
        _: Granted<Node>,
        _: u64,
        _: u32,
    ) -> Result<DirectoryPage, CallError<ReaddirError>> {
        refused()
    }
    async fn statfs(&self, _: &Call, _: Granted<Node>) -> Result<Statfs, CallError<StatError>> {
        refused()
    }
    async fn sync(&self, _: &Call, _: Granted<Node>) -> Result<(), CallError<SyncError>> {
        refused()
    }
    async fn check(&self, _: &Call, _: Granted<Node>, _: u64) -> Result<CheckPage, CallError<CheckError>> {
        refused()
    }
    async fn fetch(
        &self,
        call: &Call,
        dir: Granted<Node>,
        path: Path<'_>,
        max: u32,
    ) -> Result<(Stat, Option<Lend>), CallError<LookupError>> {
        let (node, stat) = self.open(call, dir, path, fs::READ).await?;
        let broken = self.broken.as_ref().is_some_and(|(broken, _)| broken.as_bytes() == path.as_bytes());
        if stat.kind != Kind::File || stat.size > u64::from(max).min(self.lease_bytes) || broken {
            return Ok((stat, None));
        }
        let Node(number) = node.object;
        let lend = Lend {
            region: REGION,
            offset: self.files[number as usize].1,
            length: stat.size,
            source: None,
            keep: Rc::new(()),
        };
        Ok((stat, (stat.size > 0).then_some(lend)))
    }
}

/// A running server.
pub struct Site {
    pub address: SocketAddr,
    lender: Rc<RefCell<Lender>>,
    _sessions: [HostSession; 2],
}

fn info(number: u64) -> SessionInfo {
    SessionInfo {
        id: SessionId(number),
        epoch: EPOCH,
        client: HTTPD,
        client_name: "httpd".into(),
        attenuation: serde_json::json!({"tcp": "127.0.0.1:0"}),
    }
}

impl Site {
    /// Serves `files` in the runtime of this thread.
    pub async fn start(files: Files, limits: Limits, options: Options) -> Site {
        let region = Region::create("region", REGION, files.bytes.len().next_multiple_of(4096).max(4096)).unwrap();
        region.copy_in(0, &files.bytes).unwrap();
        let lender = Rc::new(RefCell::new(Lender::new(LENDER, EPOCH, 4096).unwrap()));
        let reopen = |fd: BorrowedFd<'_>| SegmentReader::open(fd.try_clone_to_owned().unwrap(), 1).unwrap();
        let pins = PinSegment::create(Incarnation(9), EPOCH, LENDER, 4096).unwrap();
        lender.borrow_mut().attach_pins(Incarnation(9), EPOCH, reopen(pins.fd())).unwrap();
        let mut mapper = Mapper::new();
        let reader = RegionReader::open(region.fd().try_clone_to_owned().unwrap(), REGION).unwrap();
        let table = reopen(lender.borrow().table_fd());
        mapper.introduce(LENDER, EPOCH, table, &[(REGION, reader)], pins, None).unwrap();

        let stack = Stack::new(options, Rc::new(RefCell::new(mapper)), Rc::new(Counters::default()));
        let shape = Shape::default();
        let root = NewCap::new(Node(u64::MAX), Rights::all()).to_grant();
        let service = Rc::new(fs::Dispatcher(files));
        let (fs_client, fs_host) = in_process(shape, root, service, info(1), Some(lender.clone()));
        let root = NewCap::new(Root, Rights::all()).to_grant();
        let (net_client, net_host) = in_process(shape, root, Rc::new(net::Dispatcher(stack)), info(2), None);
        let fs = fs::Client::from_connection(Connection::fixed(fs_client));
        let net = net::Client::from_connection(Connection::fixed(net_client));

        let address = Rc::new(RefCell::new(String::new()));
        let report = address.clone();
        let report = Rc::new(move |bound: &str| *report.borrow_mut() = bound.to_owned());
        let serving = Httpd::new(fs, net, limits).listen("127.0.0.1:0", report).await.unwrap();
        drop(runtime::spawn(serving));
        let address = address.borrow().parse().unwrap();
        Site { address, lender, _sessions: [fs_host, net_host] }
    }

    /// Waits until no lease is held or pinned any more.
    pub async fn leases_are_back(&self) {
        while !self.is_idle() {
            runtime::sleep(Duration::from_millis(5)).await;
        }
    }

    fn is_idle(&self) -> bool {
        let mut lender = self.lender.borrow_mut();
        lender.reclaim();
        lender.lent_count() == 0 && lender.dying() == 0
    }
}

/// Runs `test` on a runtime of its own, with a watchdog.
pub fn run(test: impl AsyncFnOnce()) {
    match Runtime::new(runtime::Options::default()) {
        Ok(runtime) => runtime.block_on(async {
            runtime::timeout(Duration::from_secs(300), test()).await.expect("the watchdog barked");
        }),
        Err(error) => println!("skipped: no io_uring here ({error})"),
    }
}

/// Runs a blocking client on a thread, while the runtime serves it.
pub async fn client<T: Send + 'static>(client: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = thread::spawn(client);
    while !thread.is_finished() {
        runtime::sleep(Duration::from_millis(1)).await;
    }
    thread.join().unwrap()
}

/// Bytes that do not repeat within a page or a megabyte.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8 ^ (i >> 12) as u8).collect()
}

/// An answer as a client reads it.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub fields: HashMap<String, String>,
    pub body: Vec<u8>,
}

/// Reads one answer; its body has the announced length, none for HEAD.
pub fn read_answer(from: &mut impl std::io::BufRead, head: bool) -> std::io::Result<Answer> {
    let mut line = String::new();
    if from.read_line(&mut line)? == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or(std::io::ErrorKind::InvalidData)?;
    let mut fields = HashMap::new();
    loop {
        line.clear();
        from.read_line(&mut line)?;
        let Some((name, value)) = line.split_once(':') else { break };
        fields.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = fields.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; if head { 0 } else { length }];
    from.read_exact(&mut body)?;
    Ok(Answer { status, fields, body })
}
