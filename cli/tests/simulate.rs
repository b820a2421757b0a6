//! `atoll simulate`: goes on where it was, and says what is wrong with what it is given.

use std::path::Path;
use std::process::{Command, Output};

fn atoll(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_atoll"))
        .arg("simulate")
        .args(arguments)
        .current_dir(directory)
        .env("NO_COLOR", "1")
        .output()
        .expect("the binary runs")
}

fn sum(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(said["violation"], serde_json::Value::Null);
    said["run"]["sum"].clone()
}

fn refusal(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_run_goes_on_where_it_was_and_comes_to_the_same() {
    let directory = tempfile::tempdir().expect("a directory");
    let run = |arguments: &[&str]| atoll(directory.path(), &[arguments, &["--from", "500", "--json"]].concat());
    let first = sum(&run(&["--seeds", "20", "--state", "run.json"]));
    assert_eq!(first["seeds"], 20);
    let both = sum(&run(&["--seeds", "50", "--state", "run.json"]));
    assert_eq!(both, sum(&run(&["--seeds", "50"])), "as in one go");
    assert!(both["calls"].as_u64() > first["calls"].as_u64());
    // Nothing is left to do.
    assert_eq!(sum(&run(&["--seeds", "50", "--state", "run.json"])), both);
    let traced = atoll(directory.path(), &["--from", "500", "--seeds", "1", "--trace"]);
    assert!(traced.status.success() && String::from_utf8_lossy(&traced.stdout).contains("starts, epoch 1"));
}

#[test]
fn a_file_that_is_no_state_of_this_run_is_named_and_left_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("run.json");
    for (text, wrong) in [
        ("", "not the state of a simulation"),
        ("{\"from\": 0}", "not the state of a simulation"),
        (
            "{\"from\": 7, \"elapsed_ms\": 0, \"has_steps\": true, \"sum\": {\"seeds\": 0, \"calls\": 0, \"answered\": 0, \
             \"connections\": 0, \"turns\": 0, \"host_deaths\": 0, \"client_deaths\": 0, \"simulated_ms\": 0}}",
            "this run began with seed 7, not 0",
        ),
    ] {
        std::fs::write(&path, text).expect("written");
        let said = refusal(&atoll(directory.path(), &["--seeds", "5", "--state", "run.json"]));
        assert!(said.contains(wrong) && said.contains("run.json") && said.contains("help:"), "{said}");
        assert_eq!(std::fs::read_to_string(&path).expect("still there"), text);
    }
    let said = refusal(&atoll(directory.path(), &["--seeds", "1", "--state", "nowhere/run.json"]));
    assert!(said.contains("nowhere/run.json"), "{said}");
}
