//! What a good manifest becomes.

use serde_json::json;
use supervisor::manifest::{Checked, Manifest, Origin};
use supervisor::report::Report;

fn load(text: &str, sets: &[&str]) -> Result<Checked, Report> {
    let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
    Manifest::load(Origin::Text { name: "test.toml", text }, &sets)
}

#[test]
fn the_embedded_manifest_is_good() {
    let checked = Manifest::load(Origin::Embedded, &[]).expect("systems/web.toml is good");
    assert_eq!(checked.system, "web");
    let names: Vec<&str> = checked.components.iter().map(|component| component.name.as_str()).collect();
    assert_eq!(names, ["disk", "fs", "net", "httpd"]);
    let [disk, fs, net, httpd] = checked.components.as_slice() else { panic!("four components") };
    assert_eq!(disk.config, json!({"path": "disk.img", "size": 4u64 << 30, "create": true}));
    assert_eq!(fs.config, json!({"cache": 64 << 20}));
    assert_eq!(fs.uses[0].rights.bits(), 1 | 1 << 1 | 1 << 3 | 1 << 8);
    assert_eq!(net.config, json!({}));
    assert_eq!(net.uses[0].attenuation, json!({}));
    assert_eq!(httpd.run.builtin(), Some("httpd"));
    assert_eq!(httpd.uses[0].component, "fs");
    assert_eq!(httpd.uses[0].endpoint, "root");
    assert_eq!(httpd.uses[0].interface, "atoll.fs/1");
    assert_eq!(httpd.uses[0].attenuation, json!({"path": "/www"}));
    assert_eq!(httpd.uses[1].attenuation, json!({"tcp": "127.0.0.1:8080"}));
}

#[test]
fn a_system_can_be_on_as_many_nodes_as_it_has_parts_and_have_operators_on_others() {
    let apart = include_str!("../../systems/apart.toml");
    let text = apart.replace("name = \"web\"", "name = \"web\"\noperators = [\"node:c\", \"node:e\"]");
    let checked = load(&text, &[]).expect("it is good");
    let places: Vec<_> = checked.components.iter().map(|one| (one.name.as_str(), one.node.as_deref())).collect();
    assert_eq!(places, [("disk", Some("a")), ("fs", Some("b")), ("net", Some("d")), ("httpd", Some("c"))]);
    assert_eq!(checked.operators, ["c", "e"]);
    assert!(load(apart, &[]).expect("it is good").operators.is_empty());
}

#[test]
fn a_set_changes_the_value_and_what_refers_to_it() {
    let checked = Manifest::load(
        Origin::Embedded,
        &["httpd.listen=127.0.0.1:0".into(), "disk.size=1GiB".into(), "disk.create=false".into()],
    )
    .expect("good overrides");
    let httpd = &checked.components[3];
    assert_eq!(httpd.config, json!({"listen": "127.0.0.1:0"}));
    assert_eq!(httpd.uses[1].attenuation, json!({"tcp": "127.0.0.1:0"}));
    assert_eq!(checked.components[0].config["size"], json!(1u64 << 30));
    assert_eq!(checked.components[0].config["create"], json!(false));
}

#[test]
fn components_start_after_what_they_use_wherever_they_stand() {
    let text = r#"
        atoll = 1
        [component.a-files]
        run = "builtin:fs-server"
        uses.disk = { from = "z-disk.disk", rights = ["read", "write", "flush", "map"] }
        [component.z-disk]
        run = "builtin:block-file"
        provides.disk = "atoll.block/1"
        config = { path = "disk.img" }
    "#;
    let checked = load(text, &[]).expect("good");
    let names: Vec<&str> = checked.components.iter().map(|component| component.name.as_str()).collect();
    assert_eq!(names, ["z-disk", "a-files"]);
    assert_eq!(checked.components[0].config, json!({"path": "disk.img", "create": false}));
    assert_eq!(checked.components[1].config, json!({"cache": 64 << 20}));
}

#[test]
fn a_checked_system_can_be_stored_and_read_back() {
    let checked = Manifest::load(Origin::Embedded, &[]).expect("good");
    let stored = serde_json::to_string(&checked).expect("it is plain data");
    assert_eq!(serde_json::from_str::<Checked>(&stored).expect("it reads back"), checked);
}

#[test]
fn the_last_set_of_a_field_counts() {
    let checked =
        Manifest::load(Origin::Embedded, &["httpd.listen=127.0.0.1:1".into(), "httpd.listen=127.0.0.1:2".into()])
            .expect("good");
    assert_eq!(checked.components[3].config, json!({"listen": "127.0.0.1:2"}));
}
