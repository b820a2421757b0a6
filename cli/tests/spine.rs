//! A system as people run it: up, a page, files, down, up again.

mod common;

use common::System;

#[test]
fn a_file_that_is_put_is_served_also_after_down_and_up() {
    let system = System::start(&[]);
    let welcome = system.get("/");
    assert_eq!(welcome.status, 200);
    assert!(!welcome.body.is_empty());

    let content: Vec<u8> = (0..3_000_000u32).map(|n| (n * 7 + n / 251) as u8).collect();
    let file = system.file("source.bin");
    std::fs::write(&file, &content).expect("a file to put");
    system.ok(&["fs", "put", file.to_str().expect("UTF-8"), "/www/file.bin"]);
    assert!(system.get("/file.bin").body == content);

    system.ok(&["down"]);
    assert_eq!(system.atoll(&["ps"]).status.code(), Some(3));
    system.ok(&["fs", "check", "--image", system.file("disk.img").to_str().expect("UTF-8")]);
    system.up(&[]);
    assert!(system.get("/file.bin").body == content);
}
