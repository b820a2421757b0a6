//! `atoll fs ls|stat|df`: what is on the volume.

use std::ffi::OsStr;

use kernel_ipc::Rights;
use kernel_ipc::interface::Cap;
use protocol::fs::{Kind, Node, Stat};
use serde_json::{Value, json};

use super::path::{VolumePath, printable};
use super::{Volume, with_volume};
use crate::args::Common;
use crate::output::{self, Align, Failed, Table, size, time};
use crate::why::why;

/// Entries asked for at a time; a page has as many of them as fit a reply.
const PAGE: u32 = 1024;
/// Look-ups at a time for a long listing.
const AT_A_TIME: usize = 16;

/// An entry of a directory, on its own memory.
#[derive(Clone, Debug)]
pub struct Entry {
    pub name: Vec<u8>,
    pub kind: Kind,
    pub inode: u64,
}

/// Reads one page of a directory; gives its entries and where the next page begins.
pub async fn page(
    volume: &Volume,
    path: &VolumePath,
    directory: &Cap<Node>,
    cursor: u64,
) -> Result<(Vec<Entry>, Option<u64>), Failed> {
    let page = volume.client.readdir(directory, cursor, PAGE).await.map_err(|error| why(path, &error))?;
    let mut entries = Vec::new();
    for entry in page.entries() {
        let entry = entry.map_err(|_| Failed::new(format!("{path}: the listing cannot be read")))?;
        entries.push(Entry { name: entry.name.as_bytes().to_vec(), kind: entry.kind, inode: entry.inode });
    }
    Ok((entries, page.next))
}

/// All entries of a directory, by name.
pub async fn entries(volume: &Volume, path: &VolumePath, directory: &Cap<Node>) -> Result<Vec<Entry>, Failed> {
    let mut all = Vec::new();
    let mut cursor = Some(0);
    while let Some(at) = cursor {
        let (entries, next) = page(volume, path, directory, at).await?;
        all.extend(entries);
        cursor = next;
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

/// `atoll fs ls`.
pub fn ls(common: &Common, path: &OsStr, long: bool) -> Result<(), Failed> {
    let path = VolumePath::parse(path)?;
    let (entries, stats) = with_volume(common, async |volume| {
        let stat = volume.look(&path).await?;
        if stat.kind == Kind::File {
            let name = path.split().map_or_else(Vec::new, |(_, name)| name.as_bytes().to_vec());
            return Ok((vec![Entry { name, kind: Kind::File, inode: stat.inode }], vec![Some(stat)]));
        }
        let directory = volume.open_directory(&path, Rights::empty()).await?;
        let entries = entries(&volume, &path, &directory).await?;
        let stats = if long { stats(&volume, &path, &entries).await? } else { Vec::new() };
        Ok((entries, stats))
    })?;
    let stat_of = |index: usize| stats.get(index).and_then(Option::as_ref);
    if common.json {
        let list: Vec<Value> = entries
            .iter()
            .enumerate()
            .map(|(index, entry)| {
                let mut facts = json!({"name": String::from_utf8_lossy(&entry.name), "kind": word(entry.kind), "inode": entry.inode});
                if let Some(stat) = stat_of(index) {
                    facts["size"] = json!(stat.size);
                    facts["modified_ns"] = json!(stat.modified_ns);
                }
                facts
            })
            .collect();
        return output::json(&list);
    }
    if !long {
        let mut text = String::new();
        for entry in &entries {
            text.push_str(&printable(&entry.name));
            text.push_str(if entry.kind == Kind::Directory { "/\n" } else { "\n" });
        }
        return output::write(text.as_bytes());
    }
    let mut table = Table::new(&[("size", Align::Right), ("modified", Align::Left), ("name", Align::Left)]);
    for (index, entry) in entries.iter().enumerate() {
        // An entry that was removed meanwhile is listed without its facts.
        let (bytes, modified) =
            stat_of(index).map_or_else(Default::default, |stat| (stat.size, time(stat.modified_ns)));
        let (bytes, mark) = if entry.kind == Kind::Directory { ("-".into(), "/") } else { (size(bytes), "") };
        table.row(vec![bytes, modified, format!("{}{mark}", printable(&entry.name))]);
    }
    output::write(table.render(output::stdout_colours()).as_bytes())
}

/// What is known about each entry; nothing for one that is gone.
async fn stats(volume: &Volume, path: &VolumePath, entries: &[Entry]) -> Result<Vec<Option<Stat>>, Failed> {
    let found = std::rc::Rc::new(std::cell::RefCell::new(vec![None; entries.len()]));
    let pool = super::pool::Pool::new(AT_A_TIME);
    for (index, entry) in entries.iter().enumerate() {
        let (volume, found, path) = (volume.clone(), found.clone(), path.join(&entry.name)?);
        pool.start(async move {
            let stat = volume.find(&path).await?;
            if let Some(place) = found.borrow_mut().get_mut(index) {
                *place = stat;
            }
            Ok(())
        })
        .await?;
    }
    pool.finish().await?;
    Ok(found.take())
}

/// `file` or `directory`.
pub fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Directory => "directory",
    }
}

/// `atoll fs stat`.
pub fn stat(common: &Common, path: &OsStr) -> Result<(), Failed> {
    let path = VolumePath::parse(path)?;
    let stat = with_volume(common, async |volume| volume.look(&path).await)?;
    if common.json {
        return output::json(&json!({
            "path": path.to_string(),
            "kind": word(stat.kind),
            "inode": stat.inode,
            "size": stat.size,
            "blocks": stat.blocks,
            "links": stat.links,
            "version": stat.version,
            "modified_ns": stat.modified_ns,
        }));
    }
    let mut text = format!("path      {path}\nkind      {}\n", word(stat.kind));
    text.push_str(&format!("size      {} ({} bytes)\n", size(stat.size), stat.size));
    text.push_str(&format!("blocks    {} of 4 KiB\n", stat.blocks));
    text.push_str(&format!("modified  {} UTC\n", time(stat.modified_ns)));
    text.push_str(&format!("inode     {}\nlinks     {}\nversion   {}\n", stat.inode, stat.links, stat.version));
    output::write(text.as_bytes())
}

/// `atoll fs df`.
pub fn df(common: &Common) -> Result<(), Failed> {
    let room = with_volume(common, async |volume| {
        volume.client.statfs(volume.client.root()).await.map_err(|error| why(&"the volume", &error))
    })?;
    let bytes = |blocks: u64| blocks.saturating_mul(4096);
    let used = room.blocks.saturating_sub(room.free_blocks);
    if common.json {
        return output::json(&json!({
            "block_size": 4096,
            "blocks": room.blocks,
            "free_blocks": room.free_blocks,
            "total_bytes": bytes(room.blocks),
            "used_bytes": bytes(used),
            "free_bytes": bytes(room.free_blocks),
            "nodes": room.nodes,
            "checkpoint": room.checkpoint,
        }));
    }
    use Align::Right;
    let mut table = Table::new(&[("size", Right), ("used", Right), ("free", Right), ("use%", Right), ("nodes", Right)]);
    let percent = format!("{}%", used.saturating_mul(100).div_ceil(room.blocks.max(1)));
    table.row(vec![
        size(bytes(room.blocks)),
        size(bytes(used)),
        size(bytes(room.free_blocks)),
        percent,
        room.nodes.to_string(),
    ]);
    output::write(table.render(output::stdout_colours()).as_bytes())
}
