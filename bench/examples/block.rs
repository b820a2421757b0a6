//! Block reads through `block-file` in a process of its own: `cargo run --release --example block -- DIRECTORY [SECONDS]`.
//!
//! The image of 1 GiB is made in DIRECTORY, which should be on the disk in question. No node is needed.

use std::cell::RefCell;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use bench::block::{Options, fill, run};
use drivers::block::{Device, FileDriver, Image, ImageConfig, Parts};
use kernel_ipc::interface::{Connect, Connection, NewCap};
use kernel_ipc::lease::{Lender, Region};
use kernel_ipc::rights::Rights;
use kernel_ipc::runtime::{self, Runtime, Waiting};
use kernel_ipc::session::{HostSession, Offer, SessionInfo};
use kernel_ipc::sys::descriptors;
use kernel_ipc::wire::Shape;
use kernel_ipc::{Epoch, Incarnation, LenderId, RegionId, SessionId};
use protocol::block;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let first = arguments.next().ok_or("usage: block DIRECTORY [SECONDS]")?;
    if first == "--driver" {
        return drive(Path::new(&arguments.next().ok_or("no image")?));
    }
    let seconds = arguments.next().map_or(Ok(3), |text| text.parse())?;
    let image = PathBuf::from(first).join("atoll-bench.img");
    fill(&image, 1 << 30)?;
    let result = measure(&image, seconds);
    std::fs::remove_file(&image)?;
    result
}

fn waiting() -> Waiting {
    match std::env::var("WAITING").as_deref() {
        Ok("spin") => Waiting::Spin,
        Ok("block") => Waiting::Block,
        _ => Waiting::Adaptive,
    }
}

fn new_runtime() -> std::io::Result<Runtime> {
    Runtime::new(runtime::Options { waiting: waiting(), ..runtime::Options::default() })
}

fn measure(image: &Path, seconds: u64) -> Result<(), Failure> {
    let (ours, theirs) = UnixDatagram::pair()?;
    let mut driver = Command::new(std::env::current_exe()?)
        .arg("--driver")
        .arg(image)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()?;
    let report = new_runtime()?.block_on(async {
        let shape = Shape { slots: 64, ..Shape::default() };
        let offer = Offer::new(shape)?;
        descriptors::send(ours.as_fd(), b"c", &[offer.fd()], true)?;
        let segment = descriptors::receive(ours.as_fd(), &mut [0], true)?.descriptors.pop().ok_or("no segment")?;
        let session = offer.open(segment, SessionId(1), Epoch(1))?;
        let device = block::Client::from_connection(Connection::fixed(session));
        Ok::<_, Failure>(run(&device, image, &Options { duration: Duration::from_secs(seconds) }).await?)
    });
    driver.kill()?;
    driver.wait()?;
    let report = report?;
    println!(
        "{}, {} cores, Linux {}, load {}",
        report.machine.processor, report.machine.cores, report.machine.kernel, report.machine.load
    );
    for row in report.rows {
        let micros = |nanos: u64| nanos as f64 / 1000.0;
        println!(
            "{:34} {:9.0}/s {:7.0} MB/s  p50 {:7.1} µs  p99 {:7.1} µs  p99.9 {:7.1} µs  {}",
            row.name,
            row.per_second,
            row.bytes_per_second / 1e6,
            micros(row.p50_ns),
            micros(row.p99_ns),
            micros(row.p999_ns),
            row.ratio.map_or_else(String::new, |ratio| format!("{ratio:.3}"))
        );
    }
    report.notes.iter().for_each(|note| println!("{note}"));
    Ok(())
}

/// The driver's process: one session, whose segments go over standard input.
fn drive(image: &Path) -> Result<(), Failure> {
    let socket = std::io::stdin();
    new_runtime()?.block_on(async {
        let config = ImageConfig { path: image.to_owned(), size: None, create: false, read_only: true };
        let image = Image::open(&config).await?;
        let region = Region::create("disk", RegionId(1), 96 << 20)?;
        let driver = FileDriver::new(Parts {
            image,
            region,
            in_flight: 32 << 20,
            mapper: Rc::default(),
            counters: Rc::default(),
            under_way: drivers::block::UnderWay::default(),
            record: None,
        })?;
        let segment = descriptors::receive(socket.as_fd(), &mut [0], true)?.descriptors.pop().ok_or("no segment")?;
        let info = SessionInfo {
            id: SessionId(1),
            epoch: Epoch(1),
            client: Incarnation(2),
            client_name: "bench".into(),
            attenuation: serde_json::Value::Null,
        };
        let lender = Rc::new(RefCell::new(Lender::new(LenderId(1), Epoch(1), 65_536)?));
        let root = NewCap::new(Device, Rights::READ).to_grant();
        let session = HostSession::start(segment, root, Rc::new(block::Dispatcher(driver)), info, Some(lender))?;
        descriptors::send(socket.as_fd(), b"s", &[session.fd().ok_or("no segment")?], true)?;
        std::future::pending::<()>().await;
        Ok(())
    })
}
