//! Topic filters and layouts (MQTT-4.7).

use crate::source::Subscription;

/// The level of Sparkplug's topics that is the group, which is the tenant: `spBv1.0/{group}/…`.
const GROUP: usize = 1;

/// What is wrong with a topic filter, and what would be right.
pub fn check_filter(filter: &str) -> Result<(), (String, String)> {
    let wrong = |problem: &str, remedy: &str| Err((problem.to_owned(), remedy.to_owned()));
    if filter.is_empty() {
        return wrong("is empty", "write a topic filter such as plant/+/telem");
    }
    if filter.len() > 65_535 || filter.contains('\0') {
        return wrong("is longer than 65,535 bytes or holds NUL", "write a shorter filter, without NUL");
    }
    if filter.starts_with("$share/") {
        return wrong("is a shared subscription", "write the filter alone and set spec.sharding.by: Shared");
    }
    let levels: Vec<&str> = filter.split('/').collect();
    for (index, level) in levels.iter().enumerate() {
        if level.contains('#') && *level != "#" {
            return wrong("'#' shares its level with other characters", "make '#' the whole last level");
        }
        if *level == "#" && index + 1 != levels.len() {
            return wrong(
                "'#' stands in the middle",
                "write '#' as the last level only, or '+' for one level",
            );
        }
        if level.contains('+') && *level != "+" {
            return wrong("'+' shares its level with other characters", "make '+' the whole level");
        }
    }
    Ok(())
}

/// What a level of a topic means.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Level {
    Literal(String),
    Tenant,
    Site,
    Device,
    Kind,
}

/// What the levels of a topic mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    levels: Vec<Level>,
}

/// The named levels of a topic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Named<'a> {
    /// `{tenant}`; empty where the layout has none.
    pub tenant: &'a [u8],
    /// `{site}`; empty where the layout has none.
    pub site: &'a [u8],
    /// `{device}`.
    pub device: &'a [u8],
    /// `{kind}`, where the layout has one.
    pub kind: Option<&'a [u8]>,
}

impl Layout {
    /// Reads a layout such as `plant/{tenant}/{device}`. The error says what is wrong and what would be right.
    pub fn parse(text: &str) -> Result<Self, (String, String)> {
        let wrong = |problem: String, remedy: &str| Err((problem, remedy.to_owned()));
        let mut levels: Vec<Level> = Vec::new();
        for level in text.split('/') {
            let level = match level {
                "{tenant}" => Level::Tenant,
                "{site}" => Level::Site,
                "{device}" => Level::Device,
                "{kind}" => Level::Kind,
                literal if literal.contains(['{', '}']) => {
                    return wrong(
                        format!("the level '{literal}' is no placeholder"),
                        "use {tenant}, {site}, {device} or {kind} as a whole level",
                    );
                }
                literal if literal.contains(['+', '#', '\0']) => {
                    return wrong(
                        format!("the level '{literal}' holds a wildcard or NUL"),
                        "use placeholders, not wildcards",
                    );
                }
                literal => Level::Literal(literal.to_owned()),
            };
            if !matches!(level, Level::Literal(_)) && levels.contains(&level) {
                return wrong(format!("{level:?} stands twice"), "name each placeholder once");
            }
            levels.push(level);
        }
        if !levels.contains(&Level::Device) {
            return wrong(
                "has no {device}".to_owned(),
                "name the level that tells the device, as in traksense/{tenant}/{site}/{device}/{kind}",
            );
        }
        Ok(Self { levels })
    }

    /// The named levels of a topic, if it has as many levels as the layout and its literal ones.
    pub fn split<'a>(&self, topic: &'a [u8]) -> Option<Named<'a>> {
        let mut named = Named::default();
        let mut levels = topic.split(|byte| *byte == b'/');
        for meaning in &self.levels {
            let level = levels.next()?;
            match meaning {
                Level::Literal(literal) if literal.as_bytes() == level => {}
                Level::Literal(_) => return None,
                Level::Tenant => named.tenant = level,
                Level::Site => named.site = level,
                Level::Device => named.device = level,
                Level::Kind => named.kind = Some(level),
            }
        }
        levels.next().is_none().then_some(named)
    }

    /// Whether a level is the tenant.
    pub fn names_tenant(&self) -> bool {
        self.levels.contains(&Level::Tenant)
    }

    /// The filter with the tenant's level replaced by the tenant, if it can be: where it is `+`. For
    /// Sparkplug the layout does not count.
    pub fn filter_of_tenant(&self, subscription: &Subscription, tenant: &str) -> Option<String> {
        let place = if subscription.is_sparkplug() {
            GROUP
        } else {
            self.levels.iter().position(|level| *level == Level::Tenant)?
        };
        let mut levels: Vec<&str> = subscription.filter.split('/').collect();
        match levels.get_mut(place) {
            Some(level) if *level == "+" || *level == tenant => *level = tenant,
            _ => return None,
        }
        Some(levels.join("/"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn filters_are_checked_as_the_protocol_says() {
        for good in ["a", "a/+/c", "+", "#", "a/#", "/", "a//b"] {
            assert!(check_filter(good).is_ok(), "{good}");
        }
        for bad in ["", "a/#/c", "a#", "a/b+", "#/a", "$share/g/a", "a\0"] {
            assert!(check_filter(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_layout_needs_a_device_and_names_each_placeholder_once() {
        for good in ["t/{tenant}/{site}/{device}/{kind}", "{device}"] {
            assert!(Layout::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "t/{tenant}",
            "{tenant}/{device}/{device}",
            "{tenant}/{device}/{x}",
            "{tenant}/a{device}",
            "{tenant}/{device}/#",
        ] {
            assert!(Layout::parse(bad).is_err(), "{bad}");
        }
    }

    fn of_tenant(layout: &str, filter: &str, format: &str) -> Option<String> {
        let subscription = serde_json::json!({"filter": filter, "format": format});
        let subscription = serde_json::from_value(subscription).unwrap();
        Layout::parse(layout).unwrap().filter_of_tenant(&subscription, "acme")
    }

    #[test]
    fn a_tenants_filter_replaces_its_wildcard_only() {
        for (filter, divided) in
            [("t/+/+", Some("t/acme/+")), ("t/acme/+", Some("t/acme/+")), ("t/other/+", None), ("#", None)]
        {
            assert_eq!(of_tenant("t/{tenant}/{device}", filter, "Auto").as_deref(), divided, "{filter}");
        }
    }

    #[test]
    fn sparkplug_is_divided_by_its_group_whatever_the_layout_says() {
        for layout in ["plant/area/{tenant}/{device}", "{tenant}/{device}/{kind}", "{device}"] {
            for format in ["SparkplugB", "Auto"] {
                let divided = |filter| of_tenant(layout, filter, format);
                assert_eq!(divided("spBv1.0/+/#").as_deref(), Some("spBv1.0/acme/#"), "{layout}");
                assert_eq!(divided("spBv1.0/+/+/#").as_deref(), Some("spBv1.0/acme/+/#"), "{layout}");
                assert_eq!(divided("spBv1.0/plant/+/#"), None, "{layout}");
                assert_eq!(divided("spBv1.0/#"), None, "{layout}");
            }
        }
        // Of another format it is a topic as any.
        assert_eq!(
            of_tenant("spBv1.0/{device}/{tenant}", "spBv1.0/+/+", "V1").as_deref(),
            Some("spBv1.0/+/acme")
        );
        assert_eq!(of_tenant("{tenant}/{device}", "+/+", "Auto").as_deref(), Some("acme/+"));
        assert_eq!(of_tenant("{tenant}/{device}", "+/+/#", "SparkplugB").as_deref(), Some("+/acme/#"));
    }

    proptest! {
        #[test]
        fn a_topic_made_by_the_layout_splits_into_its_names(tenant in "[^/]{0,8}", site in "[^/]{0,8}", device in "[^/]{0,8}") {
            let layout = Layout::parse("x/{tenant}/{site}/{device}/y").unwrap();
            let topic = format!("x/{tenant}/{site}/{device}/y");
            let named = layout.split(topic.as_bytes()).unwrap();
            prop_assert_eq!((named.tenant, named.site, named.device), (tenant.as_bytes(), site.as_bytes(), device.as_bytes()));
        }

        #[test]
        fn splitting_never_panics(topic in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Layout::parse("x/{tenant}/{device}").unwrap().split(&topic);
        }
    }
}
