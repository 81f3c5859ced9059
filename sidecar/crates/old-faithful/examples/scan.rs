//! Scans slots of an archive for programs and prints the certificate: `scan BASE START END PROGRAM...`
//!
//! `VERIFY=off|matched|full` and `CONNECTIONS=n` set how; the time taken goes to standard error.

use std::time::Instant;

use futures::StreamExt;
use old_faithful::{Archive, ArchiveOptions, ScanEvent, ScanRequest, SlotRange, Verify};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [base, start, end, programs @ ..] = arguments.as_slice() else {
        return Err("give BASE START END PROGRAM...".into());
    };
    let mut keys = Vec::new();
    for program in programs {
        let mut key = [0; 32];
        five8::decode_32(program, &mut key).map_err(|_| format!("{program} is no program id"))?;
        keys.push(key);
    }
    let mut options = ArchiveOptions::default();
    if let Ok(connections) = std::env::var("CONNECTIONS") {
        options.connections = connections.parse()?;
    }
    let verify = match std::env::var("VERIFY").as_deref() {
        Ok("off") => Verify::Off,
        Ok("matched") => Verify::Matched,
        _ => Verify::Full,
    };
    let archive = Archive::open(base, options)?;
    let request = ScanRequest {
        range: SlotRange::new(start.parse()?, end.parse()?),
        programs: keys,
        verify,
        checkpoint_slots: 0,
    };

    let begun = Instant::now();
    let mut events = Box::pin(archive.scan(request));
    while let Some(event) = events.next().await {
        if let ScanEvent::Done { certificate } = event? {
            println!("{}", serde_json::to_string_pretty(&certificate)?);
        }
    }
    eprintln!("{:.3} s", begun.elapsed().as_secs_f64());
    Ok(())
}
