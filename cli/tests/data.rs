//! What is put comes back as it was: by HTTP and by `get`, whole and in ranges, before and after the system was down.
//!
//! The full sizes of the issue (1 GiB, 20,000 files) are in `campaign.rs`.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::http::Session;
use common::{Random, System};

const LARGE: usize = (64 << 20) + 12_345;
const RANGES: usize = 200;

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn a_large_file_comes_back_whole_and_in_ranges() {
    let system = System::start(&[]);
    let mut random = Random(0x5eed);
    let content = random.bytes(LARGE);
    let (source, copy) = (system.file("source"), system.file("copy"));
    fs::write(&source, &content).expect("a file to put");
    let said: serde_json::Value =
        serde_json::from_str(&system.ok(&["fs", "put", "--json", text(&source), "/www/large"])).expect("JSON");
    assert_eq!((&said["files"], &said["bytes"]), (&1.into(), &LARGE.into()));

    for round in ["fresh", "after down and up"] {
        assert!(system.get("/large").body == content, "by HTTP, {round}");
        system.ok(&["fs", "get", "/www/large", text(&copy)]);
        assert!(fs::read(&copy).expect("the copy") == content, "by get, {round}");
        let printed = system.atoll(&["fs", "cat", "/www/large"]);
        assert!(printed.status.success() && printed.stdout == content, "by cat, {round}");

        let mut session = Session::new(&system.listen());
        for number in 0..RANGES {
            let first = random.below(LARGE as u64) as usize;
            let most = [10, 5_000, 300_000, LARGE as u64][number % 4];
            let last = first + random.below(most) as usize;
            let end = (last + 1).min(LARGE);
            let reply = session.get("/large", &format!("Range: bytes={first}-{last}\r\n"));
            assert_eq!(
                (reply.status, reply.header("content-range")),
                (206, &*format!("bytes {first}-{}/{LARGE}", end - 1))
            );
            assert!(reply.body == content[first..end], "{first}-{last}, {round}");
        }
        let tail = session.get("/large", "Range: bytes=-1234567\r\n");
        assert!(tail.status == 206 && tail.body == content[LARGE - 1_234_567..]);
        system.ok(&["down"]);
        system.up(&[]);
    }
}

/// Every file below a directory, by its path from there; a directory has no bytes of its own but is there.
fn tree(directory: &Path) -> BTreeMap<Vec<u8>, Option<Vec<u8>>> {
    use std::os::unix::ffi::OsStrExt;
    let mut all = BTreeMap::new();
    let mut open = vec![directory.to_path_buf()];
    while let Some(at) = open.pop() {
        for entry in fs::read_dir(&at).expect("a directory") {
            let path = entry.expect("an entry").path();
            let name = path.strip_prefix(directory).expect("below").as_os_str().as_bytes().to_vec();
            if path.is_dir() {
                all.insert(name, None);
                open.push(path);
            } else {
                all.insert(name, Some(fs::read(&path).expect("a file")));
            }
        }
    }
    all
}

#[test]
fn a_tree_comes_back_equal() {
    use std::os::unix::ffi::OsStringExt;
    let system = System::start(&[]);
    let mut random = Random(77);
    let source = system.file("source");
    for number in 0..400u64 {
        let directory = source.join(format!("d{}/e{}", number % 7, number % 3));
        fs::create_dir_all(&directory).expect("a directory");
        // Nothing, a call's worth, a few blocks, more than an extent.
        let most = [1, 3_072, 20_000, 3 << 20][if number % 97 == 0 { 3 } else { number as usize % 3 }];
        let size = random.below(most) as usize;
        fs::write(directory.join(format!("file {number} ä")), random.bytes(size)).expect("a file");
    }
    fs::create_dir_all(source.join("empty/deep/er")).expect("a directory");
    fs::write(source.join("n".repeat(255)), b"the longest name").expect("a file");
    let odd = std::ffi::OsString::from_vec(b"\xff\xfe not UTF-8 \x01".to_vec());
    fs::write(source.join(odd), b"names are bytes").expect("a file");
    let expected = tree(&source);
    assert_eq!(expected.values().filter(|file| file.is_some()).count(), 402);

    system.ok(&["fs", "put", "-r", text(&source), "/www/tree"]);
    for round in ["fresh", "after down and up"] {
        let copy = system.file(&format!("copy {round}"));
        system.ok(&["fs", "get", "-r", "/www/tree", text(&copy)]);
        assert!(tree(&copy) == expected, "{round}");
        system.ok(&["down"]);
        let image = system.file("disk.img");
        system.ok(&["fs", "check", "--image", text(&image)]);
        system.up(&[]);
    }
    // By HTTP as well.
    let mut session = Session::new(&system.listen());
    for (name, content) in expected.iter().filter_map(|(name, content)| Some((name, content.as_ref()?))) {
        let encoded: String =
            name.iter().map(|byte| if *byte == b'/' { "/".into() } else { format!("%{byte:02x}") }).collect();
        let reply = session.get(&format!("/tree/{encoded}"), "");
        assert!(reply.status == 200 && reply.body == *content, "{encoded}: {}", reply.status);
    }
}

#[test]
fn a_file_that_is_replaced_while_it_is_read_is_the_old_or_the_new_one() {
    let system = System::start(&[]);
    let (one, two) = (system.file("one"), system.file("two"));
    fs::write(&one, vec![1; 9_000_000]).expect("a file");
    fs::write(&two, vec![2; 7_000_000]).expect("a file");
    system.ok(&["fs", "put", text(&one), "/www/file"]);
    let listen = system.listen();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for round in 0..12 {
                let source = if round % 2 == 0 { &two } else { &one };
                system.ok(&["fs", "put", text(source), "/www/file"]);
            }
        });
        let mut seen = [0, 0];
        while !writer.is_finished() || seen == [0, 0] {
            let body = common::get(&listen, "/file").expect("a whole answer").body;
            let (which, size) = if body[0] == 1 { (1, 9_000_000) } else { (2, 7_000_000) };
            assert!(body.len() == size && body.iter().all(|byte| *byte == which), "a mixture");
            seen[usize::from(which) - 1] += 1;
        }
        writer.join().expect("every put went well");
    });
    assert_eq!(system.ok(&["fs", "ls", "/www"]), "file\nindex.html\n", "no half-written file is left");
}
