//! A file system in plain memory that the real one is compared with.
#![allow(dead_code, reason = "each test uses its part")]

pub mod surgery;

use fs_server::simulated::{SimulatedDevice, SimulatedEnvironment};
use fs_server::{Error, FormatOptions, MountOptions, NodeId, Volume};
use std::collections::BTreeMap;
use std::rc::Rc;

pub type Disk = Volume<SimulatedDevice>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Model {
    File(Vec<u8>),
    Directory(BTreeMap<Vec<u8>, Model>),
}

#[derive(Clone, Debug)]
pub enum Operation {
    Create(Path),
    Mkdir(Path),
    Write(Path, u64, usize, u8),
    Append(Path, usize, u8),
    Truncate(Path, u64),
    Unlink(Path),
    Rmdir(Path),
    Rename(Path, Path),
    Read(Path, u64, u32),
    Sync,
    Remount,
}

pub type Path = Vec<u8>;

/// The names of a path: each byte one name.
pub fn names(path: &[u8]) -> Vec<Vec<u8>> {
    path.iter().map(|&byte| format!("name-{byte}").into_bytes()).collect()
}

impl Model {
    pub fn empty() -> Self {
        Self::Directory(BTreeMap::new())
    }

    pub fn get(&mut self, names: &[Vec<u8>]) -> Result<&mut Self, Error> {
        let Some((first, rest)) = names.split_first() else { return Ok(self) };
        match self {
            Self::File(_) => Err(Error::NotDirectory),
            Self::Directory(entries) => entries.get_mut(first).ok_or(Error::NotFound)?.get(rest),
        }
    }

    fn directory(&mut self, names: &[Vec<u8>]) -> Result<&mut BTreeMap<Vec<u8>, Self>, Error> {
        match self.get(names)? {
            Self::Directory(entries) => Ok(entries),
            Self::File(_) => Err(Error::NotDirectory),
        }
    }

    fn file(&mut self, names: &[Vec<u8>]) -> Result<&mut Vec<u8>, Error> {
        match self.get(names)? {
            Self::File(bytes) => Ok(bytes),
            Self::Directory(_) => Err(Error::IsDirectory),
        }
    }

    fn is_directory(&self) -> bool {
        matches!(self, Self::Directory(_))
    }

    /// What the operation does here; the error it must give if it does nothing.
    pub fn apply(&mut self, operation: &Operation) -> Result<(), Error> {
        match operation {
            Operation::Create(path) | Operation::Mkdir(path) => {
                let names = names(path);
                let (last, parents) = names.split_last().expect("a path has a name");
                let entries = self.directory(parents)?;
                if entries.contains_key(last) {
                    return Err(Error::Exists);
                }
                let new = match operation {
                    Operation::Create(_) => Self::File(Vec::new()),
                    _ => Self::empty(),
                };
                entries.insert(last.clone(), new);
            }
            Operation::Write(path, offset, length, fill) => {
                let bytes = self.file(&names(path))?;
                if *length == 0 {
                    return Ok(());
                }
                let end = *offset as usize + length;
                bytes.resize(bytes.len().max(end), 0);
                bytes[*offset as usize..end].copy_from_slice(&pattern(*length, *fill));
            }
            Operation::Append(path, length, fill) => self.file(&names(path))?.extend(pattern(*length, *fill)),
            Operation::Truncate(path, size) => self.file(&names(path))?.resize(*size as usize, 0),
            Operation::Unlink(path) | Operation::Rmdir(path) => {
                let names = names(path);
                let (last, parents) = names.split_last().expect("a path has a name");
                let entries = self.directory(parents)?;
                let wants_directory = matches!(operation, Operation::Rmdir(_));
                match entries.get(last).ok_or(Error::NotFound)? {
                    Self::File(_) if wants_directory => return Err(Error::NotDirectory),
                    Self::Directory(_) if !wants_directory => return Err(Error::IsDirectory),
                    Self::Directory(below) if !below.is_empty() => return Err(Error::NotEmpty),
                    _ => entries.remove(last),
                };
            }
            Operation::Rename(from, to) => {
                let (from, to) = (names(from), names(to));
                let (from_last, from_parents) = from.split_last().expect("a path has a name");
                let (to_last, to_parents) = to.split_last().expect("a path has a name");
                // Both directories are looked up before either is looked at.
                self.get(from_parents)?;
                self.get(to_parents)?;
                self.directory(from_parents)?;
                self.directory(to_parents)?;
                let moved = self.directory(from_parents)?.get(from_last).ok_or(Error::NotFound)?.is_directory();
                if from == to {
                    return Ok(());
                }
                if moved && to_parents.starts_with(&from) {
                    return Err(Error::Cycle);
                }
                match self.directory(to_parents)?.get(to_last) {
                    Some(Self::Directory(_)) if !moved => return Err(Error::IsDirectory),
                    Some(Self::File(_)) if moved => return Err(Error::NotDirectory),
                    Some(Self::Directory(below)) if !below.is_empty() => return Err(Error::NotEmpty),
                    _ => {}
                }
                let moved = self.directory(from_parents)?.remove(from_last).expect("it was there");
                self.directory(to_parents)?.insert(to_last.clone(), moved);
            }
            Operation::Read(path, ..) => drop(self.file(&names(path))?),
            Operation::Sync | Operation::Remount => {}
        }
        Ok(())
    }
}

/// Bytes that are recognised when they come back at the wrong place.
pub fn pattern(length: usize, fill: u8) -> Vec<u8> {
    (0..length).map(|index| fill.wrapping_add((index / 512) as u8).wrapping_mul(31) ^ index as u8 | 1).collect()
}

pub async fn node(volume: &Disk, names: &[Vec<u8>]) -> Result<NodeId, Error> {
    if names.is_empty() {
        return Ok(volume.root());
    }
    volume.lookup(volume.root(), &names.join(&b'/')).await.map(|stat| stat.id)
}

pub async fn apply(volume: &Disk, operation: &Operation) -> Result<(), Error> {
    let split = |path: &Path| {
        let mut names = names(path);
        let last = names.pop().expect("a path has a name");
        (names, last)
    };
    match operation {
        Operation::Create(path) => {
            let (parents, last) = split(path);
            volume.create(node(volume, &parents).await?, &last).await.map(drop)
        }
        Operation::Mkdir(path) => {
            let (parents, last) = split(path);
            volume.mkdir(node(volume, &parents).await?, &last).await.map(drop)
        }
        Operation::Write(path, offset, length, fill) => {
            let file = node(volume, &names(path)).await?;
            volume.write(file, *offset, pattern(*length, *fill).as_slice()).await
        }
        Operation::Append(path, length, fill) => {
            let file = node(volume, &names(path)).await?;
            volume.append(file, pattern(*length, *fill).as_slice()).await.map(drop)
        }
        Operation::Truncate(path, size) => volume.truncate(node(volume, &names(path)).await?, *size).await,
        Operation::Unlink(path) => {
            let (parents, last) = split(path);
            volume.unlink(node(volume, &parents).await?, &last).await
        }
        Operation::Rmdir(path) => {
            let (parents, last) = split(path);
            volume.rmdir(node(volume, &parents).await?, &last).await
        }
        Operation::Rename(from, to) => {
            let ((from_parents, from), (to_parents, to)) = (split(from), split(to));
            let from_directory = node(volume, &from_parents).await?;
            let to_directory = node(volume, &to_parents).await?;
            volume.rename(from_directory, &from, to_directory, &to, true).await
        }
        Operation::Read(path, offset, length) => {
            volume.read(node(volume, &names(path)).await?, *offset, *length).await.map(drop)
        }
        Operation::Sync => volume.sync().await,
        Operation::Remount => Ok(()),
    }
}

/// All bytes of a file, read as they come.
pub async fn read_file(volume: &Disk, file: NodeId) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    while let Some(held) = volume.read(file, bytes.len() as u64, 1 << 20).await? {
        assert!(held.length > 0, "a read that is not at the end brings something");
        bytes.extend(held.to_vec());
    }
    assert_eq!(bytes.len() as u64, volume.stat(file).await?.size);
    Ok(bytes)
}

/// The whole content of a volume.
pub async fn snapshot(volume: &Disk, directory: NodeId) -> Result<Model, Error> {
    let mut entries = BTreeMap::new();
    let mut cursor = Some(0);
    while let Some(at) = cursor {
        let listing = volume.readdir(directory, at, 3, 4096).await?;
        for entry in listing.entries {
            let stat = volume.lookup(directory, &entry.name).await?;
            assert_eq!((stat.id.inode, stat.kind), (entry.inode, entry.kind));
            let content = match entry.kind {
                fs_server::FileKind::File => Model::File(read_file(volume, stat.id).await?),
                fs_server::FileKind::Directory => Box::pin(snapshot(volume, stat.id)).await?,
            };
            assert!(entries.insert(entry.name, content).is_none(), "a name is listed once");
        }
        cursor = listing.next;
    }
    assert_eq!(volume.stat(directory).await?.size, entries.len() as u64);
    Ok(Model::Directory(entries))
}

pub fn small_options() -> MountOptions {
    MountOptions {
        cache_bytes: 2 << 20,
        cache_entries: 64,
        node_bytes: 1 << 20,
        staged_bytes: 1 << 20,
        read_ahead_bytes: 2 << 20,
    }
}

pub fn format(environment: &Rc<SimulatedEnvironment>, device: &SimulatedDevice, format: FormatOptions) -> Disk {
    environment
        .run(Volume::format(device.clone(), environment.clone(), &format, small_options()))
        .expect("a device of zeros can be formatted")
}

pub fn mount(environment: &Rc<SimulatedEnvironment>, device: &SimulatedDevice) -> Result<Disk, Error> {
    environment.run(Volume::mount(device.clone(), environment.clone(), small_options()))
}
