//! An archive in an S3 bucket is read as one in a folder: asked for by path, signed, and not a byte more.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use archive_sim::{Plan, Server};
use serde_json::Value;

const ACCESS_KEY: &str = "AKIDOFTHETEST";
const SECRET_KEY: &str = "hunter2secret";

/// `uho-sidecar scan --json` of the archive at `base`, the bucket's server being at `endpoint`: its answer.
fn scan(base: &str, endpoint: &str, plan: &Plan) -> (bool, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_uho-sidecar"))
        .args(["scan", "--json", "--archive", base])
        .args(["--program", &archive_sim::program_address("orderbook")])
        .args(["--from-slot", &plan.first_slot.to_string()])
        .args(["--to-slot", &plan.last_slot.to_string()])
        .env("AWS_ENDPOINT_URL", endpoint)
        .env("AWS_ALLOW_HTTP", "true")
        .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        .output()
        .unwrap();
    (
        output.status.success(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn a_bucket_yields_what_a_folder_does() {
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("archives").join("solana");
    std::fs::create_dir_all(&archive).unwrap();
    let plan = Plan::of_range(864_000, 864_349, 350);
    archive_sim::write(&archive, &plan).unwrap();
    let server = Server::start(folder.path(), "127.0.0.1:0", Vec::new()).unwrap();
    let endpoint = format!("http://{}", server.address());

    let (read, from_folder, error) = scan(archive.to_str().unwrap(), &endpoint, &plan);
    assert!(read, "{error}");
    assert_eq!(server.requests(), 0);
    let (read, from_bucket, error) = scan("s3://archives/solana", &endpoint, &plan);
    assert!(read, "{error}");
    let [expected, found]: [Value; 2] =
        [from_folder, from_bucket].map(|text| serde_json::from_str(&text).unwrap());
    assert!(expected["certificate"]["blocks"].as_u64().unwrap() > 100);
    assert_eq!(found["certificate"], expected["certificate"]);
    assert!(server.requests() > 0);

    let (read, _, error) = scan("s3://archives/elsewhere", &endpoint, &plan);
    assert!(!read);
    assert!(error.contains("epoch_not_found"), "{error}");
    assert!(!error.contains(SECRET_KEY), "{error}");
}
