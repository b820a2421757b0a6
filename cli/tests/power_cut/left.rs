//! What a cut of power has left, looked at: by the file system's own code over memory, or by a system that starts on it.

use std::path::Path;
use std::rc::Rc;

use drivers::block::Left;
use fs_server::simulated::{Behaviour, SimulatedDevice, SimulatedEnvironment};
use fs_server::{FileKind, MountOptions, NodeId, Structure, Volume};

use crate::common::System;
use crate::history::{Found, Tree};
use crate::load::{DIRECTORY, WORKERS};

/// Where the files are that are put.
pub const PUTS: &str = "puts";

type Disk = Volume<SimulatedDevice>;

/// Checks the volume, mounts it, checks it again and reads all of it.
///
/// # Errors
/// Nothing that a cut may leave.
pub fn look(left: &Left, blocks: u64) -> Result<Found, String> {
    let device = SimulatedDevice::new(blocks, 1, Behaviour::default());
    for (at, block) in left {
        device.overwrite(*at, &block[..]);
    }
    let environment = SimulatedEnvironment::new(1);
    let text = |error: fs_server::Error| error.to_string();
    let report = environment.run(fs_server::check(&device, &mut |_| ())).map_err(text)?;
    // Nothing but one copy of a pack, which is written after all else was flushed, may be found half written.
    let torn = report.problems.iter().filter(|problem| problem.structure == Structure::CheckpointPack).count() as u64;
    if torn != report.damaged_copies || report.problem_count != torn {
        return Err(format!("before the mount: {:#?}", report.lines()));
    }
    let volume = environment.run(Volume::mount(device, environment.clone(), MountOptions::default())).map_err(text)?;
    let report = environment.run(volume.check(&mut |_| ())).map_err(text)?;
    if !report.is_clean() {
        return Err(format!("after the mount: {:#?}", report.lines()));
    }
    environment.run(async {
        let mut found = Found::default();
        for worker in 0..WORKERS {
            found.workers.push(directory(&volume, &format!("{DIRECTORY}/w{worker}")).await.map_err(text)?);
        }
        found.puts = directory(&volume, PUTS).await.map_err(text)?;
        let index = volume.lookup(volume.root(), b"www/index.html").await.map_err(text)?;
        if file(&volume, index.id, index.size).await.map_err(text)? != WELCOME {
            return Err("another welcome page".to_owned());
        }
        Ok(found)
    })
}

const WELCOME: &[u8] = include_bytes!("../../../systems/welcome/index.html");

async fn directory(volume: &Disk, path: &str) -> Result<Tree, fs_server::Error> {
    let above = volume.lookup(volume.root(), path.as_bytes()).await?.id;
    let (mut tree, mut cursor) = (Tree::new(), Some(0));
    while let Some(at) = cursor {
        let page = volume.readdir(above, at, 64, 4096).await?;
        for entry in page.entries {
            let stat = volume.lookup(above, &entry.name).await?;
            let content = match entry.kind {
                FileKind::File => Some(Rc::new(file(volume, stat.id, stat.size).await?)),
                FileKind::Directory => None,
            };
            let name = String::from_utf8_lossy(&entry.name).into_owned();
            assert!(tree.insert(name, content).is_none(), "a name is listed once");
        }
        cursor = page.next;
    }
    Ok(tree)
}

async fn file(volume: &Disk, file: NodeId, size: u64) -> Result<Vec<u8>, fs_server::Error> {
    let mut bytes = Vec::new();
    while let Some(held) = volume.read(file, bytes.len() as u64, 1 << 20).await? {
        bytes.extend(held.to_vec());
    }
    assert_eq!(bytes.len() as u64, size, "a file is as long as it says");
    Ok(bytes)
}

/// What a running system has, through its command line.
pub fn read(system: &System) -> Found {
    let copy = system.file("copy");
    let tree = |path: &str| {
        let local = copy.join(path);
        std::fs::create_dir_all(local.parent().expect("it has one")).expect("a directory");
        system.ok(&["fs", "get", "-r", &format!("/{path}"), local.to_str().expect("UTF-8")]);
        local_tree(&local)
    };
    Found { workers: (0..WORKERS).map(|worker| tree(&format!("{DIRECTORY}/w{worker}"))).collect(), puts: tree(PUTS) }
}

fn local_tree(directory: &Path) -> Tree {
    let entries = std::fs::read_dir(directory).expect("it was got").map(|entry| entry.expect("readable"));
    let content = |path: &Path| (!path.is_dir()).then(|| Rc::new(std::fs::read(path).expect("readable")));
    entries.map(|entry| (entry.file_name().to_string_lossy().into_owned(), content(&entry.path()))).collect()
}
