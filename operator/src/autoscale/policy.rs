//! How fast the count may change: `behavior`, as in `HorizontalPodAutoscaler` v2.

use penstock_crds::operations::{Behavior, PolicyKind, ScalingPolicy, ScalingRules, SelectPolicy};

use super::Memory;

/// More, or fewer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// More.
    Up,
    /// Fewer.
    Down,
}

/// The rules of a direction, with their defaults.
#[derive(Debug)]
pub struct Rules {
    /// Seconds for which a change must have been the better one.
    pub window: i64,
    /// The count stays.
    pub disabled: bool,
    direction: Direction,
    select: SelectPolicy,
    policies: Vec<ScalingPolicy>,
}

impl Rules {
    /// Those of a spec.
    pub fn new(behavior: Option<&Behavior>, direction: Direction) -> Self {
        let policy = |kind, value| ScalingPolicy { kind, value, period_seconds: 60 };
        let (rules, window, default) = match direction {
            Direction::Up => (
                behavior.and_then(|behavior| behavior.scale_up.clone()),
                5,
                vec![policy(PolicyKind::Percent, 300), policy(PolicyKind::Pods, 4)],
            ),
            Direction::Down => (
                behavior.and_then(|behavior| behavior.scale_down.clone()),
                300,
                vec![policy(PolicyKind::Percent, 50)],
            ),
        };
        let ScalingRules { stabilization_window_seconds, select_policy, policies } =
            rules.unwrap_or_default();
        Self {
            window: stabilization_window_seconds.map_or(window, i64::from),
            disabled: select_policy == SelectPolicy::Disabled,
            direction,
            select: select_policy,
            policies: if policies.is_empty() { default } else { policies },
        }
    }

    /// The most shards that may be, from so many.
    pub fn most(&self, count: u32, memory: &Memory, now: i64) -> u32 {
        count + self.allowed(count, memory, now)
    }

    /// The fewest.
    pub fn least(&self, count: u32, memory: &Memory, now: i64) -> u32 {
        count.saturating_sub(self.allowed(count, memory, now))
    }

    /// By how much the count may change now: what came or went with the last change within a policy's period
    /// counts.
    fn allowed(&self, count: u32, memory: &Memory, now: i64) -> u32 {
        let changes = self.policies.iter().map(|policy| {
            let start = self.count_before(count, memory, now - i64::from(policy.period_seconds));
            let value = u32::try_from(policy.value).unwrap_or_default();
            let change = match policy.kind {
                PolicyKind::Pods => value,
                PolicyKind::Percent => (f64::from(start) * f64::from(value) / 100.0).ceil() as u32,
            };
            change.saturating_sub(count.abs_diff(start))
        });
        match self.select {
            SelectPolicy::Max => changes.max(),
            SelectPolicy::Min => changes.min(),
            SelectPolicy::Disabled => None,
        }
        .unwrap_or_default()
    }

    fn count_before(&self, count: u32, memory: &Memory, since: i64) -> u32 {
        let (Some(at), Some(previous)) = (memory.kept.last_scale_seconds, memory.kept.previous_replicas)
        else {
            return count;
        };
        let previous = u32::try_from(previous).unwrap_or_default();
        let same_way = match self.direction {
            Direction::Up => previous < count,
            Direction::Down => previous > count,
        };
        if at > since && same_way { previous } else { count }
    }
}
