//! Flags and environment variables, typed, in one place. Every flag has a variable `UHO_SIDECAR_*`.

use std::net::ToSocketAddrs as _;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use old_faithful::Verify;

use crate::memory::control_group_limit;
use crate::service::{Secret, ServiceOptions};

const EXAMPLES: &str = "\
Examples:
  Serve the public archive to this machine, to whoever knows the secret:
    uho-sidecar serve --archive mainnet=https://files.old-faithful.net --secret-file secret
  What a program did in 1,000 slots, with a progress bar:
    uho-sidecar scan --archive https://files.old-faithful.net --program pAMMBay6oceH9fJKBRHGP5D4bD4sWpmSwMn52FMfXEA \\
      --from-slot 401760000 --to-slot 401760999

Every flag has an environment variable, which the flag overrides. Logs are JSON lines on standard error; UHO_SIDECAR_LOG
chooses levels, such as `warn` or `info,uho_sidecar=debug`.";

/// Streams the records of Solana programs from the Old Faithful archive, with a certificate that they
/// are complete.
#[derive(Debug, Parser)]
#[command(version, about, after_help = EXAMPLES, max_term_width = 120)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the binary does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve backfills over HTTP until SIGTERM
    ///
    /// Paths: POST /backfill, DELETE /backfill/{id}, POST /estimate, GET /archives/{network}/tip, GET /metrics (all with
    /// `Authorization: Bearer SECRET`, where there is a secret) and GET /health. Prints {"listening":"ADDRESS:PORT"} on
    /// standard output once it listens.
    Serve(ServeArguments),
    /// Read a range once and print what is there, with its certificate
    ///
    /// Ends with exit code 0 only if everything was read and the certificate holds.
    Scan(ScanArguments),
}

/// Arguments of `serve`.
#[derive(Debug, Args)]
pub struct ServeArguments {
    /// Address to listen on; port 0 takes any free one
    #[arg(long, env = "UHO_SIDECAR_LISTEN", default_value = "127.0.0.1:3001")]
    pub listen: String,
    /// An archive, as NETWORK=BASE; the base is a path, file:// or http(s)://. Repeatable; separated by commas in the variable
    #[arg(long = "archive", env = "UHO_SIDECAR_ARCHIVE", value_delimiter = ',', required = true, value_parser = parse_archive, hide_env_values = true)]
    pub archives: Vec<(String, String)>,
    /// File that holds the bearer secret; surrounding blanks do not count
    #[arg(long, env = "UHO_SIDECAR_SECRET_FILE")]
    pub secret_file: Option<PathBuf>,
    /// Backfills at the same time; more are refused with 429
    #[arg(long, env = "UHO_SIDECAR_MAX_JOBS", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub max_jobs: u32,
    /// Connections per backfill to its archive
    #[arg(long, env = "UHO_SIDECAR_CONNECTIONS", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub connections: Option<u32>,
    /// Mebibytes per range request
    #[arg(long, env = "UHO_SIDECAR_SEGMENT_MEBIBYTES", value_parser = clap::value_parser!(u32).range(1..=512))]
    pub segment_mebibytes: Option<u32>,
    /// Slots one backfill may ask for; longer ranges are refused with 400
    #[arg(long, env = "UHO_SIDECAR_MAX_SLOTS", default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub max_slots: u64,
    /// Mebibytes of memory this process may hold: above 80 % of it new backfills are refused with 503, until it holds
    /// 70 % or less. Without it, the limit of the process's control group, if there is one
    #[arg(long, env = "UHO_SIDECAR_MEMORY_LIMIT_MEBIBYTES", value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    pub memory_limit_mebibytes: Option<u64>,
    /// Folder in which what was learned of lookup tables is kept, a file of at most 48 MiB per network, so that a sidecar that starts again
    /// decompresses no metadata for what it knew. Made where it is missing. Without it, every start learns anew
    #[arg(long, env = "UHO_SIDECAR_LEARNED_TABLES_DIR")]
    pub learned_tables_dir: Option<PathBuf>,
    /// The bearer secret itself. Only as a variable: arguments can be seen by other users of the machine
    #[arg(skip = std::env::var("UHO_SIDECAR_SECRET").ok())]
    secret: Option<String>,
}

/// Arguments of `scan`.
#[derive(Debug, Args)]
pub struct ScanArguments {
    /// Base of the archive: a path, file:// or http(s)://
    #[arg(long, env = "UHO_SIDECAR_SCAN_ARCHIVE", hide_env_values = true)]
    pub archive: String,
    /// A program id. Repeatable; without one, blocks and transactions are counted and proved all the same
    #[arg(long = "program", env = "UHO_SIDECAR_SCAN_PROGRAM", value_delimiter = ',', value_parser = crate::request::parse_address)]
    pub programs: Vec<[u8; 32]>,
    /// First slot
    #[arg(long, env = "UHO_SIDECAR_SCAN_FROM_SLOT")]
    pub from_slot: u64,
    /// Last slot, inclusive
    #[arg(long, env = "UHO_SIDECAR_SCAN_TO_SLOT")]
    pub to_slot: u64,
    /// Whose SHA-256 is compared with its CID: every section's, those of matched transactions, blocks and entries, nobody's
    #[arg(long, env = "UHO_SIDECAR_SCAN_VERIFY", value_enum, default_value_t = VerifyChoice::Full)]
    pub verify: VerifyChoice,
    /// Connections to the archive
    #[arg(long, env = "UHO_SIDECAR_CONNECTIONS", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub connections: Option<u32>,
    /// Mebibytes per range request
    #[arg(long, env = "UHO_SIDECAR_SEGMENT_MEBIBYTES", value_parser = clap::value_parser!(u32).range(1..=512))]
    pub segment_mebibytes: Option<u32>,
    /// Print one JSON object: certificate, counts, rates
    #[arg(long, env = "UHO_SIDECAR_SCAN_JSON")]
    pub json: bool,
}

/// [`Verify`] as a flag's value.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum VerifyChoice {
    /// Every section.
    Full,
    /// Matched transactions, blocks and entries.
    Matched,
    /// None.
    Off,
}

impl From<VerifyChoice> for Verify {
    fn from(choice: VerifyChoice) -> Self {
        match choice {
            VerifyChoice::Full => Self::Full,
            VerifyChoice::Matched => Self::Matched,
            VerifyChoice::Off => Self::Off,
        }
    }
}

impl ServeArguments {
    /// Checks what no single flag can and reads the secret.
    pub fn options(self) -> anyhow::Result<ServiceOptions> {
        let secret = match (&self.secret_file, &self.secret) {
            (Some(file), _) => {
                let text = std::fs::read_to_string(file)
                    .with_context(|| format!("cannot read the secret file {}", file.display()))?;
                Some(text)
            }
            (None, from_environment) => from_environment.clone(),
        };
        let secret = match secret.as_deref().map(str::trim) {
            Some("") => bail!("the secret is empty; remove it or fill it"),
            other => other.map(Secret::new),
        };
        if secret.is_none() && !listens_on_loopback(&self.listen) {
            bail!(
                "refusing to listen on {} without a secret: give --secret-file, or listen on 127.0.0.1",
                self.listen
            );
        }
        let mut names: Vec<&str> = self
            .archives
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        names.sort_unstable();
        if let Some([name, _]) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            bail!("--archive names `{name}` twice");
        }
        if let Some(folder) = &self.learned_tables_dir {
            std::fs::create_dir_all(folder).with_context(|| {
                format!(
                    "cannot make the folder of learned tables, {}",
                    folder.display()
                )
            })?;
        }
        Ok(ServiceOptions {
            learned_tables_folder: self.learned_tables_dir,
            archives: self.archives,
            secret,
            max_jobs: self.max_jobs as usize,
            connections: self.connections.map(|connections| connections as usize),
            slots_at_most: self.max_slots,
            memory_limit: self
                .memory_limit_mebibytes
                .map(|mebibytes| mebibytes << 20)
                .or_else(control_group_limit),
            segment_bytes: self.segment_mebibytes.map(|size| u64::from(size) << 20),
            ..ServiceOptions::default()
        })
    }
}

fn listens_on_loopback(listen: &str) -> bool {
    listen
        .to_socket_addrs()
        .is_ok_and(|mut addresses| addresses.all(|address| address.ip().is_loopback()))
}

fn parse_archive(text: &str) -> Result<(String, String), String> {
    let (name, base) = text
        .split_once('=')
        .ok_or("expected NETWORK=BASE, such as mainnet=https://files.old-faithful.net")?;
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if name.is_empty() || !name.bytes().all(allowed) {
        return Err("a network's name has only a-z, 0-9 and `-`".to_owned());
    }
    if base.is_empty() {
        return Err("the base after `=` is empty".to_owned());
    }
    Ok((name.to_owned(), base.to_owned()))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::{Arguments, Command, ServeArguments};

    fn serve(arguments: &[&str]) -> Result<ServeArguments, String> {
        let command = ["uho-sidecar", "serve"].iter().chain(arguments);
        match Arguments::try_parse_from(command)
            .map_err(|error| error.to_string())?
            .command
        {
            Command::Serve(arguments) => Ok(arguments),
            Command::Scan(_) => Err("scan".to_owned()),
        }
    }

    #[test]
    fn an_open_service_listens_on_loopback_only() {
        let open = |listen: &str| {
            serve(&["--archive", "sim=/a", "--listen", listen])
                .unwrap()
                .options()
        };
        assert!(open("127.0.0.1:0").is_ok());
        assert!(open("[::1]:0").is_ok());
        assert!(
            open("0.0.0.0:0")
                .unwrap_err()
                .to_string()
                .contains("without a secret")
        );
    }

    #[test]
    fn archives_are_named_once() {
        let twice = serve(&["--archive", "sim=/a", "--archive", "sim=/b"])
            .unwrap()
            .options();
        assert!(twice.unwrap_err().to_string().contains("`sim` twice"));
        assert!(
            serve(&["--archive", "/a"])
                .unwrap_err()
                .contains("NETWORK=BASE")
        );
        assert!(serve(&[]).unwrap_err().contains("--archive"));
    }

    #[test]
    fn the_secret_comes_from_its_file_without_blanks_and_is_never_printed() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("secret");
        std::fs::write(&file, " hunter2\n").unwrap();
        let arguments = [
            "--archive",
            "sim=/a",
            "--secret-file",
            file.to_str().unwrap(),
        ];
        let options = serve(&arguments).unwrap().options().unwrap();
        assert!(options.secret.as_ref().unwrap().matches(b"hunter2"));
        assert!(!format!("{options:?}").contains("hunter2"));
        std::fs::write(&file, "\n").unwrap();
        assert!(
            serve(&arguments)
                .unwrap()
                .options()
                .unwrap_err()
                .to_string()
                .contains("empty")
        );
    }
}
