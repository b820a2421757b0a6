//! No interface changes so that programs built before it break, unless its version says so.
//!
//! `ATOLL_BLESS=1 cargo test -p protocol --test released` releases what the interfaces are now: a new version, and what was
//! added since.

use kernel_ipc::described::{Interface, breaks_unsaid, compare};
use protocol::INTERFACES;

#[test]
fn what_was_released_is_still_understood() {
    for known in &INTERFACES {
        let now = Interface::of(known.description);
        let word = now.family().rsplit('.').next().expect("a family has a last word");
        let path = format!("{}/released/{word}.json", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("ATOLL_BLESS").is_some() {
            std::fs::write(&path, now.to_json()).expect("the file can be written");
        }
        let text = std::fs::read_to_string(&path).expect("the file is there");
        let released = Interface::from_json(text.as_bytes()).unwrap_or_else(|fault| panic!("{path}: {fault}"));
        assert_eq!(released.family(), now.family());
        let changes = compare(&released, &now);
        assert!(
            !breaks_unsaid(&released, &now, &changes),
            "{} is not what it was, and has no new version (see the head of this test): {changes:#?}",
            now.name
        );
    }
}

#[test]
fn every_description_passes_the_check_and_survives_json() {
    for known in &INTERFACES {
        let now = Interface::of(known.description);
        let again =
            Interface::from_json(now.to_json().as_bytes()).unwrap_or_else(|fault| panic!("{}: {fault}", now.name));
        assert_eq!(*again, now);
    }
}
