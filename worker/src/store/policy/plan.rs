//! From what is wanted and what is there to actions. Pure.
//!
//! A refresh of a rollup computes its buckets again from the samples, so it must never reach back to
//! where samples may be gone: it would replace history by what is left. That holds at every moment,
//! also between two actions.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use penstock_crds::store::TelemetryStoreSpec;

use super::rollup::{self, Width};
use crate::store::edition::{Edition, Version};

/// Seconds.
pub type Seconds = i64;

const HOUR: Seconds = 3600;
const DAY: Seconds = 24 * HOUR;
/// Before it, ON CONFLICT DO NOTHING stopped at the first conflict with a compressed row and lost the
/// rows behind it: <https://github.com/timescale/timescaledb/issues/7672>.
const SAFE_COLUMNSTORE: Version = Version(2, 18, 1);
/// The first with rollups of rollups.
const NESTED_ROLLUPS: Version = Version(2, 9, 0);

/// What the manifest asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Age at which samples are dropped.
    pub retention: Option<Seconds>,
    /// Age at which samples are compressed.
    pub compress_after: Option<Seconds>,
    /// Widths of the rollups, each a multiple of the one before.
    pub rollups: Vec<Width>,
}

impl From<&TelemetryStoreSpec> for Wanted {
    fn from(spec: &TelemetryStoreSpec) -> Self {
        let seconds = |duration: &penstock_crds::Duration| duration.get().as_secs() as Seconds;
        Self {
            retention: spec.retention.as_ref().map(seconds),
            compress_after: spec.columnstore.as_ref().map(|columnstore| seconds(&columnstore.after)),
            rollups: spec.rollups.iter().map(|width| Width(seconds(width))).collect(),
        }
    }
}

/// How far back and how near to now a rollup is kept up to date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refresh {
    /// From this age on; of any age, if not given.
    pub start: Option<Seconds>,
    /// Up to this age.
    pub end: Seconds,
}

/// What the database has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Which database it is.
    pub edition: Edition,
    /// Whether samples are in chunks.
    pub hypertable: bool,
    /// Whether any chunk is compressed.
    pub compressed: bool,
    /// Whether compression is set up.
    pub columnstore: bool,
    /// The policy that drops samples.
    pub retention: Option<Seconds>,
    /// The age from which on samples may be gone, because they were kept for less time before.
    pub horizon: Option<Seconds>,
    /// The policy that compresses samples.
    pub compress_after: Option<Seconds>,
    /// The rollups, and how each is refreshed, if it is.
    pub rollups: BTreeMap<Width, Option<Refresh>>,
}

/// One change to the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Samples older than this are dropped.
    DropAfter(Seconds),
    /// Samples older than this may be gone, and it is kept in mind.
    Remember(Seconds),
    /// No samples are dropped.
    KeepForEver,
    /// Compression is set up.
    MakeColumnstore,
    /// Samples older than this are compressed.
    CompressAfter(Seconds),
    /// No more samples are compressed.
    StopCompressing,
    /// A rollup, and its view for readers.
    MakeRollup {
        /// Its width.
        width: Width,
        /// The rollup that it is made from; samples, if not given.
        from: Option<Width>,
    },
    /// A rollup is kept up to date.
    Refresh(Width, Refresh),
    /// A rollup stays as it is.
    StopRefreshing(Width),
}

/// What is to be done, and what cannot be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In this order.
    pub actions: Vec<Action>,
    /// What this edition cannot do, each beginning with its field.
    pub unsupported: Vec<String>,
    /// What else a user should know.
    pub warnings: Vec<String>,
}

/// What is to be done.
pub fn plan(wanted: &Wanted, found: &Found) -> Plan {
    let mut plan = Plan::default();
    let version = match found.edition {
        Edition::Community(version) if found.hypertable => version,
        _ => {
            plan.refuse(wanted, found);
            return plan;
        }
    };
    plan.columnstore(wanted, found, version);
    let later = wanted.retention.is_none_or(|after| found.retention.is_some_and(|now| now < after));
    let dropped = found.retention.filter(|_| later);
    let remembered = [dropped, found.horizon].into_iter().flatten().min().map(steady);
    let whole = [wanted.retention, remembered].into_iter().flatten().min();
    let mut refreshes = Vec::new();
    if version >= NESTED_ROLLUPS {
        plan.rollups(wanted, found, whole, &mut refreshes);
    } else if !wanted.rollups.is_empty() {
        plan.unsupported.push(format!("spec.rollups: needs TimescaleDB {NESTED_ROLLUPS} or newer"));
    }
    // No refresh may reach behind the retention: first the shorter of the two. What the one before dropped
    // does not come back.
    plan.actions.extend(dropped.map(Action::Remember));
    let retention = match wanted.retention {
        after if after == found.retention => None,
        Some(after) => Some(Action::DropAfter(after)),
        None => Some(Action::KeepForEver),
    };
    let (first, last) = if later { (retention, None) } else { (None, retention) };
    plan.actions.extend(first);
    plan.actions.extend(refreshes);
    plan.actions.extend(last);
    plan
}

/// How a rollup is refreshed, if samples are whole up to this age. Not before it has two buckets, or the
/// database refuses.
fn refresh(width: Width, whole: Option<Seconds>) -> Option<Refresh> {
    let start = whole.map(|whole| follows(width.0, whole));
    start.is_none_or(|start| start >= 3 * width.0).then_some(Refresh { start, end: width.0 })
}

/// Not more, and the same for some time: each change of it is a change to the database.
fn steady(age: Seconds) -> Seconds {
    let days = age / DAY;
    let step = 1 << days.checked_ilog2().unwrap_or(0).saturating_sub(3);
    if days < 1 { age / HOUR * HOUR } else { days / step * step * DAY }
}

/// Up to which age a rollup of this width follows samples that are dropped after the retention. The margin
/// is the time that a refresh may take while samples go.
pub fn follows(width: Seconds, retention: Seconds) -> Seconds {
    retention - width.max(HOUR)
}

impl Plan {
    /// Another edition than the community's has no policies of its own.
    fn refuse(&mut self, wanted: &Wanted, found: &Found) {
        let why = match found.edition {
            Edition::Community(_) => {
                "samples are in a plain table, which was made before the extension".to_owned()
            }
            edition => format!("{} cannot do it; it needs TimescaleDB Community", edition.as_str()),
        };
        if !wanted.rollups.is_empty() {
            self.unsupported.push(format!("spec.rollups: {why}"));
        }
        if wanted.compress_after.is_some() {
            self.unsupported.push(format!("spec.columnstore: {why}"));
        }
        if found.compressed {
            self.warnings.push(
                "there are compressed samples, which this edition cannot read: set timescaledb.license to \
                 timescale again, or queries miss them"
                    .to_owned(),
            );
        }
    }

    fn columnstore(&mut self, wanted: &Wanted, found: &Found, version: Version) {
        if let Some(after) = wanted.compress_after {
            if version < SAFE_COLUMNSTORE {
                self.unsupported.push(format!(
                    "spec.columnstore: TimescaleDB {version} loses rows that come late; it needs {SAFE_COLUMNSTORE} or newer"
                ));
                return;
            }
            if !found.columnstore {
                self.actions.push(Action::MakeColumnstore);
            }
            if found.compress_after != Some(after) {
                self.actions.push(Action::CompressAfter(after));
            }
        } else if found.compress_after.is_some() {
            self.actions.push(Action::StopCompressing);
        }
    }

    /// Samples are whole up to an age, or all of them.
    fn rollups(
        &mut self,
        wanted: &Wanted,
        found: &Found,
        whole: Option<Seconds>,
        refreshes: &mut Vec<Action>,
    ) {
        let mut from = None;
        for width in &wanted.rollups {
            if !found.rollups.contains_key(width) {
                self.actions.push(Action::MakeRollup { width: *width, from });
            }
            from = Some(*width);
        }
        // Those that are there rest on ones that may not be wanted: narrower ones go on.
        let widest = wanted.rollups.last();
        let kept = found.rollups.keys().filter(|width| widest.is_some_and(|widest| *width < widest));
        let kept: BTreeSet<&Width> = wanted.rollups.iter().chain(kept).collect();
        for width in &kept {
            match refresh(**width, whole) {
                Some(refresh) if found.rollups.get(width) != Some(&Some(refresh)) => {
                    refreshes.push(Action::Refresh(**width, refresh));
                }
                Some(_) => {}
                None => self.warnings.push(format!(
                    "spec.rollups: {width} is not kept up to date yet, because the samples of before were not kept \
                     for so long; it begins when there are enough"
                )),
            }
        }
        for (width, now) in found.rollups.iter().filter(|(width, _)| !kept.contains(width)) {
            if now.is_some() {
                refreshes.push(Action::StopRefreshing(*width));
            }
            self.warnings.push(format!(
                "spec.rollups: {width} is not in it any more; what it holds is kept, and can be removed with \
                 DROP MATERIALIZED VIEW penstock.{} CASCADE",
                rollup::name(*width)
            ));
        }
    }
}

impl Action {
    /// The statements, for one transaction.
    pub fn statements(&self) -> Vec<String> {
        let interval = |seconds: &Seconds| format!("interval '{seconds} seconds'");
        match self {
            Self::DropAfter(after) => vec![
                "SELECT remove_retention_policy('penstock.sample', if_exists => true)".to_owned(),
                format!("SELECT add_retention_policy('penstock.sample', drop_after => {})", interval(after)),
            ],
            Self::Remember(age) => vec![format!(
                "INSERT INTO penstock.horizon AS h (at) VALUES (now() - {}) \
                 ON CONFLICT (id) DO UPDATE SET at = greatest(h.at, excluded.at)",
                interval(age)
            )],
            Self::KeepForEver => {
                vec!["SELECT remove_retention_policy('penstock.sample', if_exists => true)".to_owned()]
            }
            Self::MakeColumnstore => vec![
                "ALTER TABLE penstock.sample SET (timescaledb.compress, \
                 timescaledb.compress_segmentby = 'series_id', timescaledb.compress_orderby = 'ts')"
                    .to_owned(),
            ],
            Self::CompressAfter(after) => vec![
                "SELECT remove_compression_policy('penstock.sample', if_exists => true)".to_owned(),
                format!(
                    "SELECT add_compression_policy('penstock.sample', compress_after => {})",
                    interval(after)
                ),
            ],
            Self::StopCompressing => {
                vec!["SELECT remove_compression_policy('penstock.sample', if_exists => true)".to_owned()]
            }
            Self::MakeRollup { width, from } => {
                [vec![rollup::create(*width, *from)], rollup::views(*width)].concat()
            }
            Self::Refresh(width, refresh) => {
                let name = rollup::name(*width);
                let start = refresh.start.as_ref().map_or_else(|| "NULL::interval".to_owned(), interval);
                vec![
                    format!(
                        "SELECT remove_continuous_aggregate_policy('penstock.{name}', if_exists => true)"
                    ),
                    format!(
                        "SELECT add_continuous_aggregate_policy('penstock.{name}', start_offset => {start}, \
                         end_offset => {}, schedule_interval => {})",
                        interval(&refresh.end),
                        interval(&width.0)
                    ),
                ]
            }
            Self::StopRefreshing(width) => vec![format!(
                "SELECT remove_continuous_aggregate_policy('penstock.{}', if_exists => true)",
                rollup::name(*width)
            )],
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DropAfter(after) => write!(f, "samples are dropped after {}", Width(*after)),
            Self::Remember(age) => write!(f, "samples older than {} may be gone", Width(*age)),
            Self::KeepForEver => f.write_str("no samples are dropped any more"),
            Self::MakeColumnstore => f.write_str("samples can be compressed"),
            Self::CompressAfter(after) => write!(f, "samples are compressed after {}", Width(*after)),
            Self::StopCompressing => f.write_str("no more samples are compressed"),
            Self::MakeRollup { width, from: None } => write!(f, "rollup {width} of samples"),
            Self::MakeRollup { width, from: Some(from) } => write!(f, "rollup {width} of rollup {from}"),
            Self::Refresh(width, Refresh { start: None, .. }) => {
                write!(f, "rollup {width} follows samples of any age")
            }
            Self::Refresh(width, Refresh { start: Some(start), .. }) => {
                write!(f, "rollup {width} follows samples up to {} old", Width(*start))
            }
            Self::StopRefreshing(width) => write!(f, "rollup {width} stays as it is"),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}
