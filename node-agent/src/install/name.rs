//! The name of our own file: it has to come before every other in byte order.

use super::candidate::Name;

/// Names to choose from, Istio's first. Runtimes fail on a broken file that comes
/// first, so even one that is no network is gone before.
const NAMES: [&str; 4] = [
    "02-istio-cni.conflist",
    "00-istio-cni.conflist",
    "0-istio-cni.conflist",
    "!istio-cni.conflist",
];

/// What a name says. The user's own counts as ours alone when it says so itself:
/// a wrong one must not cost another product its file.
pub(super) fn meaning(name: &str, asked: Option<&str>) -> Name {
    let is_asked = asked == Some(name);
    if NAMES.contains(&name) || (is_asked && name.contains("istio")) {
        Name::Reserved
    } else if is_asked {
        Name::Asked
    } else {
        Name::Free
    }
}

/// Where our file goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OwnedName {
    /// Its name.
    pub(super) name: String,
    /// A file that comes before it all the same.
    pub(super) behind: Option<String>,
}

/// Chooses: what the user asks for, else the one that is there when it comes
/// first, else the first of our names that does.
pub(super) fn owned_name<'a>(
    asked: Option<&str>,
    existing: &[&str],
    foreign: impl Iterator<Item = &'a str>,
) -> OwnedName {
    let first = foreign.min();
    let is_first = |name: &&str| first.is_none_or(|other| *name < other);
    let name = match asked {
        Some(asked) => asked,
        None => existing.iter().copied().chain(NAMES).find(is_first).unwrap_or(NAMES[0]),
    };
    let behind = first.filter(|other| *other <= name && Some(*other) != asked).map(str::to_owned);
    OwnedName { name: name.to_owned(), behind }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(asked: Option<&str>, existing: &[&str], foreign: &[&str]) -> (String, Option<String>) {
        let chosen = owned_name(asked, existing, foreign.iter().copied());
        (chosen.name, chosen.behind)
    }

    #[test]
    fn comes_first_whatever_the_others_are_called() {
        for (other, want) in [
            ("10-calico.conflist", "02-istio-cni.conflist"),
            ("05-cilium.conflist", "02-istio-cni.conflist"),
            ("01-first.conflist", "00-istio-cni.conflist"),
            ("00-multus.conf", "00-istio-cni.conflist"),
            ("00-calico.conf", "0-istio-cni.conflist"),
            ("00-aaa.json", "0-istio-cni.conflist"),
            (".hidden.conf", "!istio-cni.conflist"),
        ] {
            assert_eq!(name(None, &[], &[other, "zz.conf"]), (want.to_owned(), None), "{other}");
            assert!(want < other);
        }
    }

    #[test]
    fn stays_where_it_is_while_it_comes_first() {
        let there = ["00-istio-cni.conflist"];
        assert_eq!(name(None, &there, &["10-a.conf"]).0, there[0]);
        assert_eq!(name(None, &there, &["00-a.conf"]).0, "0-istio-cni.conflist");
    }

    #[test]
    fn says_what_a_given_name_is_behind() {
        let (given, behind) = name(Some("20-mine.conflist"), &[], &["10-a.conf", "30-b.conf"]);
        assert_eq!((given.as_str(), behind.as_deref()), ("20-mine.conflist", Some("10-a.conf")));
        assert_eq!(name(Some("0-mine.conflist"), &[], &["10-a.conf"]).1, None);
        assert!(name(None, &[], &["  .conf"]).1.is_some());
    }
}
