//! Which format a topic has: that of the first subscription whose filter matches it.

use penstock_crds::Format;
use penstock_crds::plan::Subscription;

/// Formats by filter.
#[derive(Debug)]
pub struct Formats {
    /// Filters with formats of their own; empty when all have the same.
    by_filter: Vec<(String, Format)>,
    otherwise: Format,
}

impl Formats {
    /// The formats of the subscriptions.
    pub fn new(subscriptions: &[Subscription]) -> Self {
        let otherwise = subscriptions.first().map_or(Format::Auto, |subscription| subscription.format);
        if subscriptions.iter().all(|subscription| subscription.format == otherwise) {
            return Self { by_filter: Vec::new(), otherwise };
        }
        let by_filter = subscriptions.iter().map(|s| (unshared(&s.filter).to_owned(), s.format)).collect();
        Self { by_filter, otherwise: Format::Auto }
    }

    /// The format of a topic.
    pub fn of(&self, topic: &[u8]) -> Format {
        self.by_filter
            .iter()
            .find(|(filter, _)| matches(filter.as_bytes(), topic))
            .map_or(self.otherwise, |(_, format)| *format)
    }
}

/// The filter within a shared subscription (MQTT-4.8.2).
pub fn unshared(filter: &str) -> &str {
    filter.strip_prefix("$share/").and_then(|rest| rest.split_once('/')).map_or(filter, |(_, filter)| filter)
}

/// Whether the filter matches the topic (MQTT-4.7).
fn matches(filter: &[u8], topic: &[u8]) -> bool {
    let mut levels = topic.split(|byte| *byte == b'/');
    for wanted in filter.split(|byte| *byte == b'/') {
        match (wanted, levels.next()) {
            (b"#", _) => return true,
            (b"+", Some(_)) => {}
            (wanted, Some(level)) if wanted == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_match_topics_as_the_protocol_says() {
        for (filter, topic, expected) in [
            ("a/+/c", "a/b/c", true),
            ("a/#", "a/b/c", true),
            ("a/#", "a", true),
            ("a/+", "a", false),
            ("a/+", "a/", true),
            ("a/b", "a/b/c", false),
            ("+/+", "/x", true),
            ("#", "x/y", true),
        ] {
            assert_eq!(matches(filter.as_bytes(), topic.as_bytes()), expected, "{filter} {topic}");
        }
    }

    #[test]
    fn the_first_matching_subscription_gives_the_format() {
        let subscription = |filter: &str, format| Subscription { filter: filter.into(), format };
        let formats =
            Formats::new(&[subscription("$share/g/a/#", Format::V1), subscription("#", Format::Auto)]);
        assert_eq!(formats.of(b"a/b"), Format::V1);
        assert_eq!(formats.of(b"b"), Format::Auto);
    }
}
