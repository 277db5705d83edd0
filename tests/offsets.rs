//! The const tables against the C compiler: `tools/offsets.py` evaluates `offsetof` on the internal
//! headers of every interpreter that is installed, and each number must be the table's.

use std::process::Command;

use hangscope::python::tables::table;
use serde_json::Value;

#[test]
fn the_tables_are_what_the_headers_say() {
    let sid = std::env::var("HANGSCOPE_SID").unwrap_or_else(|_| "/opt/hangscope/sid".into());
    let required = std::env::var("HANGSCOPE_REQUIRE").unwrap_or_default();
    let mut seen = Vec::new();
    for flags in [&["--json"][..], &["--json", "--debug"], &["--json", "--free-threaded"]] {
        let out = Command::new("python3")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tools/offsets.py"))
            .args(flags)
            .args(["--root", &sid])
            .output()
            .expect("python3 runs tools/offsets.py");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let columns: Vec<Value> = serde_json::from_slice(&out.stdout).expect("JSON");
        for column in &columns {
            let minor = column["minor"].as_u64().expect("minor") as u32;
            let threaded = column["free_threaded"].as_bool().expect("free_threaded");
            let layout = serde_json::to_value(table(minor, threaded).expect("a table")).expect("JSON");
            for (name, offset) in column["offsets"].as_object().expect("offsets") {
                let (group, field) = name.split_once('.').expect("group.field");
                // Grew within 3.13 and 3.14; the target's own debug offsets say what it is there.
                if name == "tstate.size" && minor >= 13 {
                    continue;
                }
                assert_eq!(&layout[group][field], offset, "{name} of {} {flags:?}", column["headers"]);
            }
            seen.push(minor);
        }
    }
    for minor in 8..=15 {
        let label = format!("3.{minor}");
        if required.split(',').any(|r| r == label) {
            assert!(seen.contains(&minor), "no headers of {label} were found");
        }
    }
    eprintln!("compared: {seen:?}");
}
