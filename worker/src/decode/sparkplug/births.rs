//! What is known of edge nodes: which names and types their births gave to aliases, since when, and
//! whether they live. Pure: changed by messages in the order of their receipt, and by what the
//! database holds.
//!
//! Names hold from a birth's own time on, and data is read by the names that held at its own time.
//! So a message means the same whenever it comes: again after a reconnect, from the dead letters, in
//! this batch or the next.
//!
//! A batch may commit before an earlier one that holds the birth by which it was read. If the worker
//! dies between, the birth is not acknowledged, and so is nothing after it (acknowledgements are a
//! prefix in the order of receipt): the broker sends both again, and the data changes nothing. Only
//! a birth at QoS 0 is gone, and then asked for.

use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::HashMap;
use serde::{Deserialize, Serialize};

use super::super::Micros;

/// Births kept of one node or device, where each gave other names than the one before.
pub const KEPT: usize = 16;
/// An edge node is asked for its births no more often.
const ASK_EVERY: Micros = 60_000_000;

/// An edge node, or a device of one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    /// The group.
    pub group: Box<str>,
    /// The edge node.
    pub node: Box<str>,
    /// The device; empty for the node itself.
    pub device: Box<str>,
}

/// A metric as a birth defines it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metric {
    /// What data may call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<u64>,
    /// Its name; empty where it cannot be the name of a point.
    pub name: Box<str>,
    /// Number of its data type.
    #[serde(rename = "type")]
    pub datatype: u32,
}

/// All metrics of a birth.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    all: Vec<Metric>,
    by_alias: HashMap<u64, usize>,
    by_name: HashMap<Box<str>, usize>,
}

impl PartialEq for Metrics {
    fn eq(&self, other: &Self) -> bool {
        self.all == other.all
    }
}

impl Metrics {
    /// In the birth's order.
    pub fn new(all: Vec<Metric>) -> Self {
        let by_alias = all.iter().enumerate().filter_map(|(place, metric)| Some((metric.alias?, place)));
        let by_name = all.iter().enumerate().map(|(place, metric)| (metric.name.clone(), place));
        Self { by_alias: by_alias.collect(), by_name: by_name.collect(), all }
    }

    /// In the birth's order.
    pub fn all(&self) -> &[Metric] {
        &self.all
    }

    /// By alias.
    pub fn alias(&self, alias: u64) -> Option<&Metric> {
        self.all.get(*self.by_alias.get(&alias)?)
    }

    /// By name.
    pub fn name(&self, name: &str) -> Option<&Metric> {
        self.all.get(*self.by_name.get(name)?)
    }
}

/// Whether a node or device lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// Time of its last birth.
    pub born_at: Micros,
    /// Which of its connections that is, where the birth says: a death must name the same.
    pub bd_seq: Option<i64>,
    /// Since when its values are stale: since its death, or its edge node's.
    pub stale_since: Option<Micros>,
}

impl State {
    /// Whether it replaces another: by a later birth, or a death after the same.
    pub fn is_newer_than(&self, other: &Self) -> bool {
        (self.born_at, self.stale_since.is_some()) > (other.born_at, other.stale_since.is_some())
    }
}

/// What a message changes, for the database.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Names hold from a time on. Never changes again.
    Names {
        /// Whose.
        of: Name,
        /// Since when.
        since: Micros,
        /// The names.
        metrics: Arc<Metrics>,
    },
    /// It lives, or no longer.
    State {
        /// Whose.
        of: Name,
        /// Now.
        state: State,
    },
}

/// What is known of all edge nodes.
#[derive(Debug, Default)]
pub struct Births {
    groups: HashMap<String, HashMap<String, Node>>,
}

/// What is known of an edge node.
#[derive(Debug, Default)]
pub struct Node {
    /// The node's own under the empty name, and its devices'.
    born: BTreeMap<Box<str>, Born>,
    /// Sequence number and time of the newest message that this process saw.
    last: Option<(u8, Micros)>,
    asked_at: Option<Micros>,
}

#[derive(Debug, Default)]
struct Born {
    /// Names and since when they hold, in the order of time.
    names: Vec<(Micros, Arc<Metrics>)>,
    state: Option<State>,
}

/// What a message's sequence number says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sequence {
    /// It follows the one before, or nothing can be told.
    Unbroken,
    /// The first of this node that this process saw.
    First,
    /// Messages are missing before it.
    Gap,
}

impl Births {
    /// The edge node, known or not.
    pub fn node(&mut self, group: &str, node: &str) -> &mut Node {
        self.groups.entry_ref(group).or_default().entry_ref(node).or_default()
    }

    /// Takes in what the database holds; in any order, and also what is known already.
    pub fn learn(&mut self, change: Change) {
        match change {
            Change::Names { of, since, metrics } => {
                self.node(&of.group, &of.node).of(&of.device).put(since, metrics);
            }
            Change::State { of, state } => {
                let known = &mut self.node(&of.group, &of.node).of(&of.device).state;
                if known.is_none_or(|known| state.is_newer_than(&known)) {
                    *known = Some(state);
                }
            }
        }
    }
}

impl Born {
    /// The names that held at a time: those of the last birth before, or of the first one after.
    fn at(&self, time: Micros) -> Option<&Arc<Metrics>> {
        let before = self.names.iter().rev().find(|(since, _)| *since <= time);
        before.or(self.names.first()).map(|(_, metrics)| metrics)
    }

    /// Has names hold from a time on.
    fn hold(&mut self, of: &Name, since: Micros, metrics: &Arc<Metrics>, changes: &mut Vec<Change>) {
        if let Some(since) = self.put(since, Arc::clone(metrics)) {
            changes.push(Change::Names { of: of.clone(), since, metrics: Arc::clone(metrics) });
        }
    }

    /// Puts names in their place in time. Returns since when they hold, where that is new.
    fn put(&mut self, mut since: Micros, metrics: Arc<Metrics>) -> Option<Micros> {
        loop {
            let place = self.names.partition_point(|(other, _)| *other <= since);
            match place.checked_sub(1).and_then(|before| self.names.get(before)) {
                Some((_, before)) if *before == metrics => return None,
                // Two births at one time: the later received holds right after.
                Some((at, _)) if *at == since => since += 1,
                _ => {
                    self.names.insert(place, (since, metrics));
                    if self.names.len() > KEPT {
                        self.names.remove(0);
                    }
                    return Some(since);
                }
            }
        }
    }
}

impl Node {
    /// The node itself, or a device of it.
    fn of(&mut self, device: &str) -> &mut Born {
        if !self.born.contains_key(device) {
            self.born.insert(device.into(), Born::default());
        }
        self.born.entry(device.into()).or_default()
    }

    /// Whether a birth of the node itself, or of a device, is known.
    pub fn is_born(&self, device: &str) -> bool {
        self.born.get(device).is_some_and(|born| !born.names.is_empty())
    }

    /// The names for data of this time; `None` before a birth, and after a death until the next one.
    pub fn names_at(&self, device: &str, time: Option<Micros>) -> Option<&Arc<Metrics>> {
        let born = self.born.get(device)?;
        let time = time.unwrap_or(Micros::MAX);
        if born.state.and_then(|state| state.stale_since).is_some_and(|stale| time >= stale) {
            return None;
        }
        born.at(time)
    }

    /// A birth. Returns whether it is older than one that gave other names: then either it comes
    /// again, or the node's clock was set back.
    pub fn birth(
        &mut self,
        of: &Name,
        at: Micros,
        bd_seq: Option<i64>,
        metrics: Metrics,
        changes: &mut Vec<Change>,
    ) -> bool {
        let born = self.of(&of.device);
        let metrics = Arc::new(metrics);
        let last = born.state.zip(born.names.last().map(|(_, last)| Arc::clone(last)));
        let newer = born.state.is_none_or(|state| at > state.born_at);
        // From a death on no other names held than those that the next birth gives.
        let died = born.state.and_then(|state| state.stale_since).filter(|_| newer);
        let since = died.map_or(at, |died| died.min(at));
        born.hold(of, since, &metrics, changes);
        if newer {
            let state = State { born_at: at, bd_seq, stale_since: None };
            born.state = Some(state);
            changes.push(Change::State { of: of.clone(), state });
            if of.device.is_empty() {
                self.stale(of, at, true, changes);
            }
            return false;
        }
        match last {
            Some((state, last)) => {
                // What the last birth said holds from then on, also where it was what an older one said.
                born.hold(of, state.born_at, &last, changes);
                last != metrics
            }
            None => false,
        }
    }

    /// Marks devices stale, or the node with all of its devices. A birth of the node ends all births
    /// of devices before it.
    fn stale(&mut self, of: &Name, since: Micros, devices_alone: bool, changes: &mut Vec<Change>) {
        for (device, born) in &mut self.born {
            let Some(state) = &mut born.state else { continue };
            let spared = if devices_alone { device.is_empty() || state.born_at >= since } else { false };
            if spared || state.stale_since.is_some() {
                continue;
            }
            state.stale_since = Some(since);
            changes.push(Change::State { of: Name { device: device.clone(), ..of.clone() }, state: *state });
        }
    }

    /// The edge node's death, received at a time. `None` where it is not that of the connection that
    /// the last birth began; else that birth's time, if there was one.
    pub fn node_death(
        &mut self,
        of: &Name,
        received_at: Micros,
        bd_seq: Option<i64>,
        changes: &mut Vec<Change>,
    ) -> Option<Option<Micros>> {
        let Some(state) = self.born.get("").and_then(|born| born.state) else { return Some(None) };
        if let (Some(born), Some(dead)) = (state.bd_seq, bd_seq)
            && born != dead
        {
            return None;
        }
        // What the node sent before by a clock that is ahead was sent by a living node.
        let since = self.last.map_or(received_at, |(_, last)| received_at.max(last + 1));
        self.stale(of, since, false, changes);
        Some(Some(state.born_at))
    }

    /// A device's death. Whether it is one of the living: not from before its last birth.
    pub fn device_death(&mut self, of: &Name, at: Micros, changes: &mut Vec<Change>) -> bool {
        let Some(state) = self.born.get_mut(&of.device).and_then(|born| born.state.as_mut()) else {
            return true;
        };
        if at < state.born_at {
            return false;
        }
        if state.stale_since.is_none() {
            state.stale_since = Some(at);
            changes.push(Change::State { of: of.clone(), state: *state });
        }
        true
    }

    /// Follows the sequence numbers of the node's messages. One that is not newer than what was seen
    /// comes again and says nothing.
    pub fn follow(&mut self, seq: Option<u64>, at: Option<Micros>, node_birth: bool) -> Sequence {
        let (Some(seq), Some(at)) = (seq, at) else { return Sequence::Unbroken };
        let seq = seq as u8;
        let Some((last, time)) = self.last else {
            self.last = Some((seq, at));
            return if node_birth { Sequence::Unbroken } else { Sequence::First };
        };
        let follows = seq == last.wrapping_add(1);
        if at < time || (at == time && !follows && !node_birth) {
            return Sequence::Unbroken;
        }
        self.last = Some((seq, at));
        if follows || node_birth { Sequence::Unbroken } else { Sequence::Gap }
    }

    /// Whether to ask the node for its births: not if it was asked a moment ago.
    pub fn ask(&mut self, now: Micros) -> bool {
        if self.asked_at.is_some_and(|asked| (asked..asked + ASK_EVERY).contains(&now)) {
            return false;
        }
        self.asked_at = Some(now);
        true
    }
}

#[cfg(test)]
mod tests;
