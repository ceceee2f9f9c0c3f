//! `penstock-worker dead-letters`. Looking and replaying work as a worker's login, removing as the owner.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand, ValueEnum};
use sqlx::{Connection, PgConnection};

use super::print;
use super::replay::Replay;
use super::verdict::Verdict;
use crate::decode::{Micros, Reason};
use crate::settings::Sources;
use crate::store::letter_search::{self, Filter, Letter};
use crate::store::{schema, transaction};

/// Letters of a page of a list or an export.
const PAGE: u64 = 1000;
/// The same where payloads come with them, which may be large.
const PAGE_WITH_PAYLOADS: u64 = 50;
/// Letters removed in one transaction: writers with dead letters wait meanwhile.
const REMOVED_AT_ONCE: i64 = 1000;
const PROGRESS: Duration = Duration::from_secs(1);

type Fault = Box<dyn std::error::Error + Send + Sync>;

/// What to do with dead letters.
#[derive(Debug, Subcommand)]
pub enum DeadLetters {
    /// Show the oldest letters as a table.
    List {
        #[command(flatten)]
        #[allow(missing_docs)]
        files: Files,
        #[command(flatten)]
        #[allow(missing_docs)]
        which: Which,
        /// Letters in this state.
        #[arg(long, value_enum, default_value_t = State::Open)]
        state: State,
        /// At most so many.
        #[arg(long, default_value_t = 50)]
        limit: u64,
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Show all of one letter, with its payload.
    Show {
        #[command(flatten)]
        #[allow(missing_docs)]
        files: Files,
        /// The first digits of its digest.
        digest: String,
    },
    /// Write letters with their payloads in base64, one JSON object a line.
    Export {
        #[command(flatten)]
        #[allow(missing_docs)]
        files: Files,
        #[command(flatten)]
        #[allow(missing_docs)]
        which: Which,
        /// Letters in this state.
        #[arg(long, value_enum, default_value_t = State::Open)]
        state: State,
        /// At most so many.
        #[arg(long)]
        limit: Option<u64>,
        /// A new file to write to, instead of standard output.
        #[arg(long, short)]
        output: Option<PathBuf>,
    },
    /// Decode letters' messages again, by the manifest's rules of now, and store them.
    Replay {
        #[command(flatten)]
        #[allow(missing_docs)]
        files: Files,
        #[command(flatten)]
        #[allow(missing_docs)]
        which: Which,
        /// Look at so many letters at most.
        #[arg(long)]
        limit: Option<u64>,
        /// One JSON object a line for each letter, and one with the sums.
        #[arg(long)]
        json: bool,
    },
    /// Remove letters for good.
    Purge {
        #[command(flatten)]
        #[allow(missing_docs)]
        files: Files,
        #[command(flatten)]
        #[allow(missing_docs)]
        which: Which,
        /// Letters in this state.
        #[arg(long, value_enum, default_value_t = State::All)]
        state: State,
        /// Remove so many at most, the oldest.
        #[arg(long)]
        limit: Option<u64>,
        /// All of them, where nothing says which.
        #[arg(long)]
        all: bool,
        /// Do it; without this it is only said how many.
        #[arg(long)]
        yes: bool,
    },
}

/// Where manifest and secrets are.
#[derive(Debug, Args)]
pub struct Files {
    /// The manifest: an IngestPipeline and its TelemetryStore.
    #[arg(short = 'f', long = "file")]
    manifest: PathBuf,
    /// Folder of secrets: <folder>/<name>/<key>.
    #[arg(long, default_value = "/etc/penstock/secrets", env = "PENSTOCK_SECRETS")]
    secrets: PathBuf,
}

/// Which letters; all, where nothing is said.
#[derive(Debug, Args)]
pub struct Which {
    /// With this reason; may be given several times.
    #[arg(long, value_parser = PossibleValuesParser::new(Reason::ALL.map(Reason::as_str)))]
    reason: Vec<String>,
    /// Of this tenant.
    #[arg(long)]
    tenant: Option<String>,
    /// Received at this time or later: 2026-11-24T05:00:00Z, or an age such as 2h.
    #[arg(long, value_parser = When::parse)]
    since: Option<When>,
    /// Received before this time.
    #[arg(long, value_parser = When::parse)]
    until: Option<When>,
    /// Of this pipeline, as <namespace>/<name>. A replay is always of the manifest's, unless said here.
    #[arg(long)]
    pipeline: Option<String>,
}

/// Whether a letter was replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum State {
    /// Not replayed yet.
    Open,
    /// Replayed.
    Replayed,
    /// Both.
    All,
}

/// A time, or an age.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// A time.
    At(Micros),
    /// So long before now, by the database's clock.
    Ago(Micros),
}

impl When {
    fn parse(text: &str) -> Result<Self, String> {
        if let Ok(age) = text.parse::<penstock_crds::Duration>() {
            return Ok(Self::Ago(age.get().as_micros() as Micros));
        }
        let at: Result<jiff::Timestamp, _> = text.parse();
        at.map(|at| Self::At(at.as_microsecond())).map_err(|_| {
            "write a time such as 2026-11-24T05:00:00Z, or an age such as 30m, 2h or 7d".to_owned()
        })
    }

    fn before(self, now: Micros) -> Micros {
        match self {
            Self::At(at) => at,
            Self::Ago(age) => now - age,
        }
    }
}

impl Which {
    fn is_anything(&self) -> bool {
        let Self { reason, tenant, since, until, pipeline } = self;
        reason.is_empty() && tenant.is_none() && since.is_none() && until.is_none() && pipeline.is_none()
    }

    fn filter(self, state: State, now: Micros) -> Filter {
        Filter {
            pipeline: self.pipeline,
            reasons: (!self.reason.is_empty()).then_some(self.reason),
            tenant: self.tenant,
            since: self.since.map(|since| since.before(now)),
            until: self.until.map(|until| until.before(now)),
            open: match state {
                State::Open => Some(true),
                State::Replayed => Some(false),
                State::All => None,
            },
        }
    }
}

impl Files {
    fn sources(self) -> Sources {
        Sources { manifest: self.manifest, plan: None, secrets: self.secrets, shard: 0 }
    }

    async fn worker(self) -> Result<PgConnection, Fault> {
        let sources = self.sources();
        let store = sources.store()?;
        open(&sources.database(&store.spec.database)?).await
    }

    async fn owner(self) -> Result<PgConnection, Fault> {
        let sources = self.sources();
        let store = sources.store()?;
        open(&sources.database(&store.spec.migration)?).await
    }
}

async fn open(options: &sqlx::postgres::PgConnectOptions) -> Result<PgConnection, Fault> {
    let mut connection = PgConnection::connect_with(options).await?;
    schema::require(&mut connection).await?;
    Ok(connection)
}

impl DeadLetters {
    /// Does it.
    pub async fn run(self) -> Result<(), Fault> {
        match self {
            Self::List { files, which, state, limit, json } => {
                list(files.worker().await?, which, state, limit, json).await
            }
            Self::Show { files, digest } => show(files.worker().await?, &digest).await,
            Self::Export { files, which, state, limit, output } => {
                export(files.worker().await?, which, state, limit, output).await
            }
            Self::Replay { files, which, limit, json } => Box::pin(replay(files, which, limit, json)).await,
            Self::Purge { files, which, state, limit, all, yes } => {
                if which.is_anything() && state == State::All && !all {
                    return Err("say which letters to remove, or --all".into());
                }
                purge(files.owner().await?, which, state, limit, yes).await
            }
        }
    }
}

async fn list(
    mut connection: PgConnection,
    which: Which,
    state: State,
    limit: u64,
    json: bool,
) -> Result<(), Fault> {
    let filter = which.filter(state, transaction::clock(&mut connection).await?);
    let mut out = std::io::stdout().lock();
    if !json {
        writeln!(out, "{}", print::HEAD)?;
    }
    let (mut after, mut left) = (None, limit);
    while left > 0 {
        let page = letter_search::page(&mut connection, &filter, after, PAGE.min(left) as i64).await?;
        let Some(last) = page.last() else { break };
        (after, left) = (Some(last.place()), left - page.len() as u64);
        for letter in &page {
            if json {
                writeln!(out, "{}", print::object(letter))?;
            } else {
                writeln!(out, "{}", print::line(letter))?;
            }
        }
    }
    let count = letter_search::count(&mut connection, &filter).await? as u64;
    if count > limit {
        eprintln!("{limit} of {count} letters; --limit shows more");
    }
    Ok(())
}

async fn show(mut connection: PgConnection, digits: &str) -> Result<(), Fault> {
    if digits.is_empty() || digits.len() > 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(format!(
            "'{digits}' is no digest; write its first hexadecimal digits, as list shows them"
        )
        .into());
    }
    let found = letter_search::of_prefix(&mut connection, &digits.to_ascii_lowercase()).await?;
    match &found[..] {
        [letter] => {
            let payloads = letter_search::payloads(&mut connection, &[letter.payload_digest]).await?;
            let payload = payloads.into_iter().next().map(|(_, payload)| payload).unwrap_or_default();
            write!(std::io::stdout().lock(), "{}", print::page(letter, &payload))?;
            Ok(())
        }
        [] => Err(format!("no dead letter's digest begins with {digits}").into()),
        _ => Err(format!("several dead letters' digests begin with {digits}; write more digits").into()),
    }
}

async fn export(
    mut connection: PgConnection,
    which: Which,
    state: State,
    limit: Option<u64>,
    output: Option<PathBuf>,
) -> Result<(), Fault> {
    let filter = which.filter(state, transaction::clock(&mut connection).await?);
    let mut out: Box<dyn Write> = match &output {
        None => Box::new(std::io::stdout().lock()),
        Some(path) => {
            let file = File::create_new(path).map_err(|error| format!("{}: {error}", path.display()))?;
            Box::new(std::io::BufWriter::new(file))
        }
    };
    let (mut after, mut left) = (None, limit.unwrap_or(u64::MAX));
    while left > 0 {
        let size = PAGE_WITH_PAYLOADS.min(left) as i64;
        let page = letter_search::page(&mut connection, &filter, after, size).await?;
        let Some(last) = page.last() else { break };
        (after, left) = (Some(last.place()), left - page.len() as u64);
        let digests: Vec<_> = page.iter().map(|letter| letter.payload_digest).collect();
        let payloads = letter_search::payloads(&mut connection, &digests).await?;
        for letter in &page {
            // Removed meanwhile, if it is not there.
            if let Some((_, payload)) = payloads.iter().find(|(digest, _)| *digest == letter.payload_digest) {
                writeln!(out, "{}", print::with_payload(letter, payload))?;
            }
        }
    }
    Ok(out.flush()?)
}

async fn replay(files: Files, which: Which, limit: Option<u64>, json: bool) -> Result<(), Fault> {
    let settings = files.sources().settings()?;
    let mut connection = open(&settings.access.database).await?;
    let mut filter = which.filter(State::Open, transaction::clock(&mut connection).await?);
    filter.pipeline.get_or_insert_with(|| settings.pipeline.to_string());
    let count = letter_search::count(&mut connection, &filter).await? as u64;
    let count = limit.map_or(count, |limit| limit.min(count));
    let mut out = std::io::stdout().lock();
    let mut told = |letter: &Letter, verdict: &Verdict| {
        if json {
            writeln!(out, "{}", print::verdict_object(letter, verdict))
        } else if let Some(line) = print::verdict_line(letter, verdict) {
            writeln!(out, "{line}")
        } else {
            Ok(())
        }
    };
    let mut last = Instant::now();
    let shown = std::io::stderr().is_terminal();
    let mut progress = |looked_at: u64| {
        if shown && last.elapsed() > PROGRESS {
            eprintln!("{looked_at} of {count} letters");
            last = Instant::now();
        }
    };
    let mut replay = Replay::new(settings)?;
    let result = replay.run(&mut connection, &filter, limit, &mut told, &mut progress).await;
    let summary = &replay.summary;
    let letters = Verdict::WORDS.into_iter().zip(summary.letters);
    if json {
        let letters: serde_json::Map<_, _> =
            letters.map(|(word, count)| (word.to_owned(), count.into())).collect();
        let rows: serde_json::Map<_, _> = summary
            .outcome
            .by_name()
            .into_iter()
            .map(|(word, count)| (word.to_owned(), count.into()))
            .collect();
        let sums = serde_json::json!({ "messages": summary.messages, "letters": letters, "items": rows });
        writeln!(out, "{sums}")?;
    } else {
        let letters: Vec<_> = letters.map(|(word, count)| format!("{count} {word}")).collect();
        let rows: Vec<_> =
            summary.outcome.by_name().iter().map(|(word, count)| format!("{count} {word}")).collect();
        writeln!(
            out,
            "{} messages decoded again; letters: {}; items: {}",
            summary.messages,
            letters.join(", "),
            rows.join(", ")
        )?;
    }
    Ok(result?)
}

async fn purge(
    mut connection: PgConnection,
    which: Which,
    state: State,
    limit: Option<u64>,
    yes: bool,
) -> Result<(), Fault> {
    let filter = which.filter(state, transaction::clock(&mut connection).await?);
    let count = letter_search::count(&mut connection, &filter).await? as u64;
    let mut left = limit.map_or(count, |limit| limit.min(count));
    if !yes {
        return Err(format!("{left} dead letters would be removed; add --yes to do it").into());
    }
    let (mut letters, mut payloads) = (0, 0);
    while left > 0 {
        let at_once = REMOVED_AT_ONCE.min(left as i64);
        let (some, of_payloads) = letter_search::remove(&mut connection, &filter, at_once).await?;
        (letters, payloads) = (letters + some, payloads + of_payloads);
        left = if some < at_once as u64 { 0 } else { left - some };
    }
    println!("{letters} dead letters and {payloads} payloads removed");
    Ok(())
}
