//! The binary over a real socket: where it listens, how it stops, who it notices leaving.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use archive_sim::Plan;
use serde_json::Value;
use support::{PUMP_AMM, silent_archive};

struct Sidecar {
    child: Child,
    address: String,
}

impl Sidecar {
    fn start(archive: &str) -> Self {
        Self::start_with(archive, &[])
    }

    fn start_with(archive: &str, arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_uho-sidecar"))
            .args([
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--archive",
                &format!("sim={archive}"),
            ])
            .args(arguments)
            .env("UHO_SIDECAR_SECRET", support::SECRET)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let listening: Value = serde_json::from_str(&line).unwrap();
        Self {
            child,
            address: listening["listening"].as_str().unwrap().to_owned(),
        }
    }

    fn request(&self, method: &str, path: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: sidecar\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\n\r\n{body}",
            support::SECRET,
            body.len(),
        )
        .unwrap();
        stream
    }

    /// Starts a backfill and reads until the job is named.
    fn backfill(&self, job: &str) -> TcpStream {
        let body =
            format!(r#"{{"programId":"{PUMP_AMM}","startSlot":0,"endSlot":10,"jobId":"{job}"}}"#);
        let mut stream = self.request("POST", "/backfill", &body);
        let mut text = String::new();
        while !text.contains("\"started\"") {
            let mut buffer = [0; 4096];
            let length = stream.read(&mut buffer).unwrap();
            assert!(length > 0, "the stream ended early: {text}");
            text.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
        stream
    }

    fn active_jobs(&self) -> u64 {
        let mut stream = self.request("GET", "/health", "");
        let mut text = String::new();
        while !text.contains('}') {
            let mut buffer = [0; 4096];
            let length = stream.read(&mut buffer).unwrap();
            text.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
        let body: Value = serde_json::from_str(&text[text.find('{').unwrap()..]).unwrap();
        body["activeJobs"].as_u64().unwrap()
    }

    fn terminate(&self) {
        let id = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &id])
                .status()
                .unwrap()
                .success()
        );
    }

    fn ends_within(&mut self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if self.child.try_wait().unwrap().is_some() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_reader_that_hangs_up_ends_its_job_within_a_second() {
    let sidecar = Sidecar::start(&silent_archive());
    let stream = sidecar.backfill("a");
    assert_eq!(sidecar.active_jobs(), 1);
    drop(stream);
    let deadline = Instant::now() + Duration::from_secs(1);
    while sidecar.active_jobs() > 0 {
        assert!(Instant::now() < deadline, "the job outlived its reader");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn termination_is_said_to_running_streams() {
    let mut sidecar = Sidecar::start(&silent_archive());
    let mut stream = sidecar.backfill("a");
    sidecar.terminate();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(
        rest.contains(r#""type":"error""#) && rest.contains("shutting_down"),
        "{rest}"
    );
    assert!(sidecar.ends_within(Duration::from_secs(5)));
}

/// What a reader is told at the end is what it got: the last checkpoint, and all that was certified.
#[test]
fn termination_amid_a_stream_says_what_was_sent() {
    let folder = tempfile::tempdir().unwrap();
    archive_sim::write(folder.path(), &Plan::of_range(864_000, 867_499, 350)).unwrap();
    let slow = vec!["slow=300000".parse().unwrap()];
    let server = archive_sim::Server::start(folder.path(), "127.0.0.1:0", slow).unwrap();
    let mut sidecar = Sidecar::start(&format!("http://{}", server.address()));
    let body = format!(
        r#"{{"programId":"{PUMP_AMM}","startSlot":864000,"endSlot":867500,"jobId":"a","checkpointSlots":10}}"#
    );
    let mut stream = sidecar.request("POST", "/backfill", &body);
    let mut text = String::new();
    while text.matches("\"checkpoint\"").count() < 5 {
        let mut buffer = [0; 4096];
        let length = stream.read(&mut buffer).unwrap();
        assert!(length > 0, "the stream ended early: {text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    sidecar.terminate();
    let begun = Instant::now();
    stream.read_to_string(&mut text).unwrap();
    assert!(sidecar.ends_within(Duration::from_secs(5)));
    assert!(begun.elapsed() < Duration::from_secs(6));
    // Without the lines of the chunked encoding and the head, what is left is one JSON object a line.
    let lines: Vec<Value> = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter(Value::is_object)
        .collect();
    let checkpoints: Vec<&Value> = lines
        .iter()
        .filter(|line| line["type"] == "checkpoint")
        .collect();
    let last = lines.last().unwrap();
    assert_eq!(
        (last["type"].as_str(), last["code"].as_str()),
        (Some("error"), Some("shutting_down"))
    );
    let sent = &last["sent"];
    assert_eq!(sent["checkpointSlot"], checkpoints.last().unwrap()["slot"]);
    assert!(sent["checkpointSlot"].as_u64().unwrap() < 867_500, "{sent}");
    for (field, of_certificate) in [
        ("blocks", "blocks"),
        ("transactions", "transactions"),
        ("archiveBytes", "bytes"),
    ] {
        let certified: u64 = checkpoints
            .iter()
            .map(|line| line["certificate"][of_certificate].as_u64().unwrap())
            .sum();
        assert!(certified > 0);
        assert_eq!(sent[field].as_u64(), Some(certified), "{field}");
    }
}

#[test]
fn a_head_with_too_many_fields_is_refused() {
    let sidecar = Sidecar::start(&silent_archive());
    let mut stream = TcpStream::connect(&sidecar.address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let many = "X-Field: 1\r\n".repeat(65);
    write!(stream, "GET /health HTTP/1.1\r\n{many}\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[test]
fn a_silent_reader_does_not_keep_the_process_alive() {
    let mut sidecar = Sidecar::start(&silent_archive());
    let _never_read = sidecar.backfill("a");
    let _idle = TcpStream::connect(&sidecar.address).unwrap();
    sidecar.terminate();
    assert!(sidecar.ends_within(Duration::from_secs(5)));
}

#[test]
fn a_deleted_job_ends_with_a_record_and_logs_hold_no_secret() {
    let mut sidecar =
        Sidecar::start(&silent_archive().replace("http://", "http://user:hunter2secret@"));
    let mut stream = sidecar.backfill("gone");
    let mut answer = sidecar.request("DELETE", "/backfill/gone", "");
    let mut text = String::new();
    while !text.contains('}') {
        let mut buffer = [0; 4096];
        let length = answer.read(&mut buffer).unwrap();
        text.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    assert!(text.contains(r#"{"cancelled":true}"#), "{text}");
    let mut rest = [0; 4096];
    let length = stream.read(&mut rest).unwrap();
    assert!(String::from_utf8_lossy(&rest[..length]).contains(r#""code":"cancelled""#));

    sidecar.terminate();
    assert!(sidecar.ends_within(Duration::from_secs(5)));
    let mut log = String::new();
    sidecar
        .child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut log)
        .unwrap();
    assert!(log.contains("backfill started"), "{log}");
    assert!(
        !log.contains("hunter2secret") && !log.contains(support::SECRET),
        "{log}"
    );
}

/// Reads a range whole: its records and its certificate, as lines.
fn read_whole(sidecar: &Sidecar, program: &str, plan: &Plan) -> String {
    let body = format!(
        r#"{{"programId":"{program}","startSlot":{},"endSlot":{},"jobId":"a"}}"#,
        plan.first_slot,
        plan.last_slot + 1
    );
    let mut stream = sidecar.request("POST", "/backfill", &body);
    let mut text = String::new();
    while !text.contains(r#""type":"done""#) {
        let mut buffer = vec![0; 65536];
        let length = stream.read(&mut buffer).unwrap();
        assert!(length > 0 && !text.contains(r#""type":"error""#), "{text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    let lines = text.lines().filter(|line| line.starts_with('{'));
    lines.collect::<Vec<_>>().join("\n")
}

/// A metric's value, by the beginning of its line.
fn metric(sidecar: &Sidecar, name: &str) -> u64 {
    let mut stream = sidecar.request("GET", "/metrics", "");
    let mut text = String::new();
    while !text.contains("# EOF") {
        let mut buffer = vec![0; 65536];
        let length = stream.read(&mut buffer).unwrap();
        text.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    let line = text.lines().find(|line| line.starts_with(name));
    line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

const DECOMPRESSIONS: &str = "uho_sidecar_reader_decompressions_total";

fn files(outcome: &str) -> String {
    format!(r#"uho_sidecar_learned_table_files_total{{network="sim",outcome="{outcome}"}}"#)
}

#[test]
fn a_second_process_goes_on_with_what_the_first_learned_unless_it_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let plan = Plan {
        unrelated: (3, 9),
        ..Plan::of_range(1_300_000, 1_300_119, 40)
    };
    archive_sim::write(folder.path(), &plan).unwrap();
    let kept = folder.path().join("kept/tables");
    let arguments = ["--learned-tables-dir", kept.to_str().unwrap()];
    let archive = folder.path().to_str().unwrap();
    let program = archive_sim::program_address("vault");
    let end = |mut sidecar: Sidecar| {
        sidecar.terminate();
        assert!(sidecar.ends_within(Duration::from_secs(10)));
        let mut log = String::new();
        let stderr = sidecar.child.stderr.take();
        stderr.unwrap().read_to_string(&mut log).unwrap();
        log
    };

    // Without the folder nothing is kept.
    let sidecar = Sidecar::start(archive);
    let expected = read_whole(&sidecar, &program, &plan);
    let cold = metric(&sidecar, DECOMPRESSIONS);
    read_whole(&sidecar, &program, &plan);
    let warm = metric(&sidecar, DECOMPRESSIONS) - cold;
    assert!(warm < cold, "{warm} of {cold}");
    end(sidecar);
    assert!(!kept.exists());

    let sidecar = Sidecar::start_with(archive, &arguments);
    assert_eq!(read_whole(&sidecar, &program, &plan), expected);
    assert_eq!(metric(&sidecar, DECOMPRESSIONS), cold);
    end(sidecar);
    let file = kept.join("sim.lookup-tables");
    let written = std::fs::read(&file).unwrap();

    let sidecar = Sidecar::start_with(archive, &arguments);
    assert_eq!(read_whole(&sidecar, &program, &plan), expected);
    assert_eq!(metric(&sidecar, DECOMPRESSIONS), warm);
    assert_eq!(metric(&sidecar, &files("restored")), 1);
    assert!(!end(sidecar).contains("are not used"));
    assert_eq!(std::fs::read(&file).unwrap(), written);

    // One flipped bit: said, counted, and everything is learned anew and written over it.
    let mut damaged = written.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 4;
    std::fs::write(&file, &damaged).unwrap();
    let sidecar = Sidecar::start_with(archive, &arguments);
    assert_eq!(read_whole(&sidecar, &program, &plan), expected);
    assert_eq!(metric(&sidecar, DECOMPRESSIONS), cold);
    assert_eq!(metric(&sidecar, &files("refused")), 1);
    assert_eq!(metric(&sidecar, &files("restored")), 0);
    let log = end(sidecar);
    assert!(
        log.contains("are not used") && log.contains("it is damaged"),
        "{log}"
    );
    assert_eq!(std::fs::read(&file).unwrap(), written);
    assert_eq!(std::fs::read_dir(&kept).unwrap().count(), 1);
}
