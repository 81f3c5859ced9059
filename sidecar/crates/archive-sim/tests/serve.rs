//! The server answers ranges as a mirror does, and misbehaves exactly where it is told to.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use archive_sim::Server;

/// A served file of 1,000 bytes that all differ from their neighbours, and its server.
fn server(faults: &[&str]) -> (tempfile::TempDir, Server, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..1_000_u32).map(|byte| (byte % 251) as u8).collect();
    fs::create_dir(folder.path().join("2")).unwrap();
    fs::write(folder.path().join("2/epoch-2.car"), &bytes).unwrap();
    fs::write(folder.path().join("2/epoch-2.cid"), "cid").unwrap();
    let faults = faults.iter().map(|fault| fault.parse().unwrap()).collect();
    let server = Server::start(folder.path(), "127.0.0.1:0", faults).unwrap();
    (folder, server, bytes)
}

/// Sends a request on a connection of its own; returns head and body, as far as they came.
fn ask(server: &Server, method: &str, path: &str, range: Option<&str>) -> (String, Vec<u8>) {
    let mut connection = TcpStream::connect(server.address()).unwrap();
    let range = range.map_or_else(String::new, |range| format!("Range: {range}\r\n"));
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{range}Connection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let _ = connection.read_to_end(&mut answer);
    let end = answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap();
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    (head, answer[end + 4..].to_vec())
}

const CAR: &str = "/2/epoch-2.car";

#[test]
fn ranges_are_answered_exactly() {
    let (_folder, server, bytes) = server(&[]);
    let (head, body) = ask(&server, "GET", CAR, Some("bytes=10-19"));
    assert!(head.starts_with("HTTP/1.1 206"), "{head}");
    assert!(head.contains("Content-Range: bytes 10-19/1000"), "{head}");
    assert_eq!(body, bytes[10..20]);
    let (head, body) = ask(&server, "GET", CAR, None);
    assert!(head.starts_with("HTTP/1.1 200") && body == bytes, "{head}");
    let (head, body) = ask(&server, "HEAD", CAR, None);
    assert!(
        head.contains("Content-Length: 1000") && body.is_empty(),
        "{head}"
    );
    assert!(
        ask(&server, "GET", CAR, Some("bytes=1000-"))
            .0
            .starts_with("HTTP/1.1 416")
    );
    assert!(
        ask(&server, "GET", "/3/epoch-3.car", None)
            .0
            .starts_with("HTTP/1.1 404")
    );
    assert_eq!((server.requests(), server.bytes()), (5, 1_010));
}

#[test]
fn a_connection_serves_several_requests() {
    let (_folder, server, bytes) = server(&[]);
    let mut connection = TcpStream::connect(server.address()).unwrap();
    for start in [0, 500] {
        let request = format!(
            "GET {CAR} HTTP/1.1\r\nHost: x\r\nRange: bytes={start}-{}\r\n\r\n",
            start + 99
        );
        connection.write_all(request.as_bytes()).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            connection.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let mut body = [0; 100];
        connection.read_exact(&mut body).unwrap();
        assert_eq!(body, bytes[start..start + 100]);
    }
}

#[test]
fn faults_happen_to_the_requests_they_are_for() {
    let range = Some("bytes=0-499");
    let (_folder, server, bytes) = server(&["status=503@3", "close-after=7@2"]);
    for round in 1..=6 {
        let (head, body) = ask(&server, "GET", CAR, range);
        match round {
            3 | 6 => assert!(
                head.starts_with("HTTP/1.1 503") && head.contains("Retry-After"),
                "{head}"
            ),
            2 | 4 => assert_eq!(
                (head.contains("Content-Length: 500"), body.len()),
                (true, 7)
            ),
            _ => assert_eq!(body, bytes[..500]),
        }
    }
    assert_eq!(ask(&server, "GET", "/2/epoch-2.cid", None).1, b"cid");
}

#[test]
fn answers_are_short_flipped_slow_or_whole_when_asked_to() {
    let range = Some("bytes=0-499");
    let (_folder, short, bytes) = server(&["short=100"]);
    let (head, body) = ask(&short, "GET", CAR, range);
    assert!(
        head.contains("Content-Length: 400") && head.contains("bytes 0-399/1000"),
        "{head}"
    );
    assert_eq!(body, bytes[..400]);

    let (_folder, flip, _) = server(&["flip"]);
    let (_, body) = ask(&flip, "GET", CAR, range);
    let bits: u32 = body
        .iter()
        .zip(&bytes)
        .map(|(a, b)| (a ^ b).count_ones())
        .sum();
    assert_eq!((body.len(), bits), (500, 1));

    let (_folder, slow, _) = server(&["slow=2000"]);
    let began = Instant::now();
    assert_eq!(ask(&slow, "GET", CAR, range).1.len(), 500);
    assert!(began.elapsed() >= Duration::from_millis(240));

    let (_folder, whole, _) = server(&["whole"]);
    assert_eq!(ask(&whole, "GET", CAR, range).1.len(), 1_000);
}
