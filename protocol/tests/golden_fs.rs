//! What `atoll.fs/1` looks like on the wire.

mod common;

use kernel_ipc::interface::{Granted, LeasePart, NewCap, Object};
use kernel_ipc::lease::Lend;
use kernel_ipc::session::Call;
use kernel_ipc::{CallError, Rights};
use protocol::fs::*;

#[derive(Clone, Copy, Object)]
#[kind(Node)]
struct Inode(u64);

const STAT: Stat =
    Stat { inode: 0x0102, size: 3, blocks: 4, modified_ns: 5, version: 6, links: 7, kind: Kind::Directory };

type Answer<T, E> = Result<T, CallError<E>>;

/// Fails as the name, offset, size or cursor asks for, and else succeeds.
struct Volume;

impl Handler for Volume {
    type Node = Inode;

    async fn open(
        &self,
        _: &Call,
        _: Granted<Inode>,
        path: Path<'_>,
        want: Rights,
    ) -> Answer<(NewCap<Inode>, Stat), LookupError> {
        match path.as_bytes() {
            b"NotFound" => Err(LookupError::NotFound.into()),
            b"NotADirectory" => Err(LookupError::NotADirectory.into()),
            b"Corrupt" => Err(LookupError::Corrupt { block: 9 }.into()),
            b"Io" => Err(LookupError::Io.into()),
            _ => Ok((NewCap::new(Inode(2), want), STAT)),
        }
    }

    async fn create(
        &self,
        _: &Call,
        _: Granted<Inode>,
        name: Name<'_>,
        want: Rights,
    ) -> Answer<(NewCap<Inode>, Stat), CreateError> {
        match name.as_bytes() {
            b"NotFound" => Err(CreateError::NotFound.into()),
            b"NotADirectory" => Err(CreateError::NotADirectory.into()),
            b"Exists" => Err(CreateError::Exists.into()),
            b"NoSpace" => Err(CreateError::NoSpace.into()),
            b"Corrupt" => Err(CreateError::Corrupt { block: 9 }.into()),
            b"Io" => Err(CreateError::Io.into()),
            _ => Ok((NewCap::new(Inode(2), want), STAT)),
        }
    }

    async fn mkdir(&self, _: &Call, _: Granted<Inode>, _: Name<'_>) -> Answer<Stat, CreateError> {
        Ok(STAT)
    }

    async fn unlink(&self, _: &Call, _: Granted<Inode>, name: Name<'_>) -> Answer<(), RemoveError> {
        match name.as_bytes() {
            b"NotFound" => Err(RemoveError::NotFound.into()),
            b"NotADirectory" => Err(RemoveError::NotADirectory.into()),
            b"IsADirectory" => Err(RemoveError::IsADirectory.into()),
            b"NotEmpty" => Err(RemoveError::NotEmpty.into()),
            b"NoSpace" => Err(RemoveError::NoSpace.into()),
            b"Corrupt" => Err(RemoveError::Corrupt { block: 9 }.into()),
            b"Io" => Err(RemoveError::Io.into()),
            _ => Ok(()),
        }
    }

    async fn rmdir(&self, _: &Call, _: Granted<Inode>, _: Name<'_>) -> Answer<(), RemoveError> {
        Ok(())
    }

    async fn rename(
        &self,
        _: &Call,
        _: Granted<Inode>,
        from: Name<'_>,
        _: Granted<Inode>,
        _: Name<'_>,
        _: bool,
    ) -> Answer<(), RenameError> {
        match from.as_bytes() {
            b"NotFound" => Err(RenameError::NotFound.into()),
            b"NotADirectory" => Err(RenameError::NotADirectory.into()),
            b"IsADirectory" => Err(RenameError::IsADirectory.into()),
            b"Exists" => Err(RenameError::Exists.into()),
            b"NotEmpty" => Err(RenameError::NotEmpty.into()),
            b"NoSpace" => Err(RenameError::NoSpace.into()),
            b"Corrupt" => Err(RenameError::Corrupt { block: 9 }.into()),
            b"Io" => Err(RenameError::Io.into()),
            b"IntoItself" => Err(RenameError::IntoItself.into()),
            _ => Ok(()),
        }
    }

    async fn stat(&self, _: &Call, _: Granted<Inode>) -> Answer<Stat, StatError> {
        Ok(STAT)
    }

    async fn lookup(&self, _: &Call, _: Granted<Inode>, _: Path<'_>) -> Answer<Stat, LookupError> {
        Ok(Stat { kind: Kind::File, ..STAT })
    }

    async fn read(&self, _: &Call, _: Granted<Inode>, offset: u64, len: u32) -> Answer<Option<Lend>, ReadError> {
        match offset {
            1 => Err(ReadError::NotFound.into()),
            3 => Err(ReadError::IsADirectory.into()),
            7 => Err(ReadError::Corrupt { block: 9 }.into()),
            8 => Err(ReadError::Io.into()),
            100 => Ok(None),
            _ => Ok(Some(common::lend(len.into()))),
        }
    }

    async fn write(&self, _: &Call, _: Granted<Inode>, offset: u64, _: &[u8]) -> Answer<(), WriteError> {
        match offset {
            1 => Err(WriteError::NotFound.into()),
            3 => Err(WriteError::IsADirectory.into()),
            6 => Err(WriteError::NoSpace.into()),
            7 => Err(WriteError::Corrupt { block: 9 }.into()),
            8 => Err(WriteError::Io.into()),
            10 => Err(WriteError::TooLarge.into()),
            _ => Ok(()),
        }
    }

    async fn write_lease(&self, _: &Call, _: Granted<Inode>, _: u64, _: LeasePart) -> Answer<(), WriteError> {
        Ok(())
    }

    async fn append(&self, _: &Call, _: Granted<Inode>, _: &[u8]) -> Answer<u64, WriteError> {
        Ok(0x0a0b)
    }

    async fn truncate(&self, _: &Call, _: Granted<Inode>, _: u64) -> Answer<(), WriteError> {
        Ok(())
    }

    async fn readdir(&self, _: &Call, _: Granted<Inode>, cursor: u64, _: u32) -> Answer<DirectoryPage, ReaddirError> {
        match cursor {
            1 => Err(ReaddirError::NotFound.into()),
            2 => Err(ReaddirError::NotADirectory.into()),
            7 => Err(ReaddirError::Corrupt { block: 9 }.into()),
            8 => Err(ReaddirError::Io.into()),
            11 => Err(ReaddirError::BadCursor.into()),
            100 => Ok(DirectoryPage::default()),
            _ => {
                let mut page = DirectoryPage { next: Some(100), bytes: Vec::new() };
                for (inode, kind, name) in [(2, Kind::File, "a.txt"), (3, Kind::Directory, "b")] {
                    let name = Name::new(name).expect("a name");
                    assert!(page.push(&DirectoryEntry { inode, kind, name }, DirectoryPage::LIMIT));
                }
                Ok(page)
            }
        }
    }

    async fn statfs(&self, _: &Call, _: Granted<Inode>) -> Answer<Statfs, StatError> {
        Ok(Statfs { blocks: 1, free_blocks: 2, nodes: 3, checkpoint: 4 })
    }

    async fn sync(&self, _: &Call, _: Granted<Inode>) -> Answer<(), SyncError> {
        Ok(())
    }

    async fn check(&self, _: &Call, _: Granted<Inode>, cursor: u64) -> Answer<CheckPage, CheckError> {
        match cursor {
            8 => Err(CheckError::Io.into()),
            11 => Err(CheckError::BadCursor.into()),
            _ => Ok(CheckPage {
                next: Some(1),
                checked_blocks: 2,
                total_blocks: 3,
                problems: vec!["one".into(), "another".into()],
            }),
        }
    }

    async fn fetch(
        &self,
        _: &Call,
        _: Granted<Inode>,
        path: Path<'_>,
        max: u32,
    ) -> Answer<(Stat, Option<Lend>), LookupError> {
        match path.as_bytes() {
            b"NotFound" => Err(LookupError::NotFound.into()),
            b"NotADirectory" => Err(LookupError::NotADirectory.into()),
            b"Corrupt" => Err(LookupError::Corrupt { block: 9 }.into()),
            b"Io" => Err(LookupError::Io.into()),
            _ => Ok((STAT, (STAT.size <= max.into()).then(|| common::lend(STAT.size)))),
        }
    }
}

#[test]
fn the_bytes_of_every_operation_are_those_of_the_golden_file() {
    let root = NewCap::new(Inode(1), READ | WRITE | LOOKUP | CREATE | REMOVE | ADMIN).to_grant();
    common::compare("fs", Dispatcher(Volume), root, async |client: &Client| {
        let dir = client.root();
        let path = |text: &'static str| Path::new(text).expect("a path");
        let name = |text: &'static str| Name::new(text).expect("a name");
        let (file, _) = client.open(dir, path("www/index.html"), READ | WRITE).await.expect("opened");
        for error in ["NotFound", "NotADirectory", "Corrupt", "Io"] {
            client.open(dir, path(error), READ).await.expect_err(error);
        }
        client.create(dir, name("new"), WRITE).await.expect("created");
        for error in ["NotFound", "NotADirectory", "Exists", "NoSpace", "Corrupt", "Io"] {
            client.create(dir, name(error), WRITE).await.expect_err(error);
        }
        client.mkdir(dir, name("dir")).await.expect("made");
        client.unlink(dir, name("old")).await.expect("removed");
        for error in ["NotFound", "NotADirectory", "IsADirectory", "NotEmpty", "NoSpace", "Corrupt", "Io"] {
            client.unlink(dir, name(error)).await.expect_err(error);
        }
        client.rmdir(dir, name("dir")).await.expect("removed");
        client.rename(dir, name("from"), dir, name("to"), true).await.expect("renamed");
        for error in ["NotFound", "NotADirectory", "IsADirectory", "Exists", "NotEmpty"] {
            client.rename(dir, name(error), dir, name("to"), false).await.expect_err(error);
        }
        for error in ["NoSpace", "Corrupt", "Io", "IntoItself"] {
            client.rename(dir, name(error), dir, name("to"), false).await.expect_err(error);
        }
        client.stat(&file).await.expect("described");
        client.lookup(dir, path("")).await.expect("found");
        client.read(&file, 0x1000, 1 << 20).await.expect("read").expect("not at the end");
        assert!(client.read(&file, 100, 1).await.expect("read").is_none());
        for error in [1, 3, 7, 8] {
            client.read(&file, error, 1).await.expect_err("each error");
        }
        client.write(&file, 5, b"bytes").await.expect("written");
        for error in [1, 3, 6, 7, 8, 10] {
            client.write(&file, error, b"").await.expect_err("each error");
        }
        client.write_lease(&file, 6, LeasePart::of(common::lease(1 << 20), 1..3)).await.expect("written");
        assert_eq!(client.append(&file, b"more").await, Ok(0x0a0b));
        client.truncate(&file, 7).await.expect("cut");
        for cursor in [0, 100] {
            client.readdir(dir, cursor, 1000).await.expect("listed");
        }
        for error in [1, 2, 7, 8, 11] {
            client.readdir(dir, error, 1000).await.expect_err("each error");
        }
        client.statfs(dir).await.expect("described");
        client.sync(dir).await.expect("synced");
        client.check(dir, 0).await.expect("checked");
        for error in [8, 11] {
            client.check(dir, error).await.expect_err("each error");
        }
        let (_, lease) = client.fetch(dir, path("www/small.html"), 4096).await.expect("fetched");
        assert_eq!(lease.expect("all of it").len(), STAT.size);
        let (_, lease) = client.fetch(dir, path("www/small.html"), 2).await.expect("described");
        assert!(lease.is_none());
        for error in ["NotFound", "NotADirectory", "Corrupt", "Io"] {
            client.fetch(dir, path(error), 4096).await.expect_err(error);
        }
    });
}
