//! Which replica leads. Pure: the Lease as it was seen, and this process's clocks; the rules of client-go.
//!
//! Nobody compares its clock with another machine's: a foreign lease has expired when it did not change
//! for its duration since this process first saw it so. A write replaces the very version that was seen,
//! so that of two who take it one fails. A leader stops at a deadline that is counted from the start of
//! its last renewal and is shorter than the lease: it has stopped before another may begin.
//!
//! What this cannot see: a lease that is deleted under a leader while a replica starts that has never
//! seen one, and a machine whose clock stands still while it sleeps.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;

/// How long things last. At 15 s: stop after 10 s, try every 2 s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    seconds: u16,
}

impl Terms {
    /// A lease of so many whole seconds.
    pub fn new(seconds: u16) -> Self {
        Self { seconds: seconds.max(1) }
    }

    /// How long others wait for a renewal.
    pub fn lease(self) -> Duration {
        Duration::from_secs(self.seconds.into())
    }

    /// How long a leader leads after the start of its last renewal.
    pub fn deadline(self) -> Duration {
        self.lease() * 2 / 3
    }

    /// The time between two tries.
    pub fn retry(self) -> Duration {
        self.lease() * 2 / 15
    }

    /// How long the kernel may try to deliver what was written: it is over before another may begin.
    pub fn delivery(self) -> Duration {
        self.lease().saturating_sub(self.deadline()) / 2
    }
}

/// Why a leader no longer is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Another holds the lease.
    Taken,
    /// It was not renewed in time.
    NotRenewed,
}

impl Loss {
    /// One word.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Taken => "lease_taken",
            Self::NotRenewed => "lease_not_renewed",
        }
    }
}

/// What to do next.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Nothing for so long.
    Wait(Duration),
    /// Read the lease.
    Look,
    /// Make it.
    Create(Lease),
    /// Replace another's, which has expired or was released.
    Acquire(Lease),
    /// Replace our own.
    Renew(Lease),
    /// Stop at once.
    Lost(Loss),
}

/// A replica.
#[derive(Debug, Clone)]
pub struct Candidate {
    me: String,
    terms: Terms,
    /// The lease as it was seen last.
    lease: Option<Lease>,
    /// When it was first seen so.
    since: Option<Instant>,
    /// One was there.
    existed: bool,
    /// When to read it before anything else.
    look: Option<Instant>,
    /// When the last renewal that succeeded was begun. It leads since the first.
    renewed: Option<Instant>,
}

impl Candidate {
    /// One that knows nothing yet. Its name is of this process alone.
    pub fn new(me: String, terms: Terms, now: Instant) -> Self {
        Self { me, terms, lease: None, since: None, existed: false, look: Some(now), renewed: None }
    }

    /// What to do now. `clock` is only what is written for people to read.
    pub fn decide(&self, now: Instant, clock: Timestamp) -> Step {
        let until = self.leads_until();
        if until.is_some_and(|until| now >= until) {
            return Step::Lost(Loss::NotRenewed);
        }
        if let Some(look) = self.look {
            let next = until.map_or(look, |until| until.min(look));
            return if now < next { Step::Wait(next - now) } else { Step::Look };
        }
        let Some(lease) = &self.lease else { return Step::Create(self.taken(None, clock)) };
        if self.holds(lease) {
            let due = self.renewed.map_or(now, |renewed| renewed + self.terms.retry());
            return if now < due { Step::Wait(due - now) } else { Step::Renew(self.kept(lease, clock)) };
        }
        if until.is_some() {
            return Step::Lost(Loss::Taken);
        }
        Step::Acquire(self.taken(Some(lease), clock))
    }

    /// Until when this process leads, unless it renews; nothing if it never began.
    pub fn leads_until(&self) -> Option<Instant> {
        self.renewed.map(|renewed| renewed + self.terms.deadline())
    }

    /// The lease was read.
    pub fn saw(&mut self, lease: Option<Lease>, now: Instant) {
        let version =
            |lease: &Option<Lease>| lease.as_ref().map(|lease| lease.metadata.resource_version.clone());
        if self.since.is_none() || version(&lease) != version(&self.lease) {
            self.since = Some(now);
        }
        self.existed |= lease.is_some();
        self.lease = lease;
        self.look = match self.free_at() {
            Some(free) if now < free => Some(free.min(now + self.terms.retry())),
            _ => None,
        };
    }

    /// A write that was begun then made the lease so.
    pub fn wrote(&mut self, lease: Lease, begun: Instant) {
        (self.lease, self.existed, self.look, self.renewed) = (Some(lease), true, None, Some(begun));
    }

    /// Somebody else was faster.
    pub fn conflicted(&mut self, now: Instant) {
        self.look = Some(now);
    }

    /// No good answer to what was begun then; it may have been done all the same.
    pub fn failed(&mut self, begun: Instant) {
        self.look = Some(begun + self.terms.retry());
    }

    /// The lease as it is given back, if it is ours.
    pub fn released(&self, clock: Timestamp) -> Option<Lease> {
        let mut lease = self.lease.clone().filter(|lease| self.holds(lease))?;
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        (spec.acquire_time, spec.renew_time) = (Some(MicroTime(clock)), Some(MicroTime(clock)));
        Some(lease)
    }

    /// How often the lease went from one holder to another.
    pub fn transitions(&self) -> i32 {
        self.lease.as_ref().and_then(|lease| lease.spec.as_ref()?.lease_transitions).unwrap_or_default()
    }

    /// Who holds it, as far as it was seen.
    pub fn holder(&self) -> &str {
        self.lease.as_ref().map_or("", holder)
    }

    fn holds(&self, lease: &Lease) -> bool {
        holder(lease) == self.me
    }

    /// From when on this process may take what it saw; nothing if that is so anyway.
    fn free_at(&self) -> Option<Instant> {
        // A leader renews, or has lost.
        if self.renewed.is_some() {
            return None;
        }
        let duration = match &self.lease {
            None if !self.existed => return None,
            // Deleted: perhaps under one who leads.
            None => self.terms.lease(),
            Some(lease) if holder(lease).is_empty() || self.holds(lease) => return None,
            Some(lease) => duration(lease).unwrap_or(self.terms.lease()),
        };
        self.since.map(|since| since + duration)
    }

    fn taken(&self, from: Option<&Lease>, clock: Timestamp) -> Lease {
        let mut lease = from.cloned().unwrap_or_default();
        let transitions =
            from.map(|from| 1 + from.spec.as_ref().and_then(|spec| spec.lease_transitions).unwrap_or(0));
        lease.spec.get_or_insert_default().lease_transitions = Some(transitions.unwrap_or(0));
        lease.spec.get_or_insert_default().acquire_time = Some(MicroTime(clock));
        self.kept(&lease, clock)
    }

    fn kept(&self, lease: &Lease, clock: Timestamp) -> Lease {
        let spec = LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: Some(self.terms.seconds.into()),
            renew_time: Some(MicroTime(clock)),
            ..lease.spec.clone().unwrap_or_default()
        };
        let metadata = ObjectMeta { managed_fields: None, ..lease.metadata.clone() };
        Lease { metadata, spec: Some(spec) }
    }
}

fn holder(lease: &Lease) -> &str {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
}

fn duration(lease: &Lease) -> Option<Duration> {
    let seconds = lease.spec.as_ref()?.lease_duration_seconds?;
    u64::try_from(seconds).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs)
}

#[cfg(test)]
mod tests;
