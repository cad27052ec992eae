//! What each file is.

use super::*;

fn kind(name: &str, text: &str) -> Kind {
    let content = Ok(text.to_owned());
    let file = File { content, mode: 0o600, owner: (0, 0), link: false, folder: None };
    let reserved = name == "02-istio-cni.conflist";
    classify(name, &file, if reserved { Name::Reserved } else { Name::Free })
}

#[test]
fn files_of_ours_are_known_by_their_mark_or_istios_name() {
    let list =
        |plugins: &str| format!(r#"{{"cniVersion":"1.0.0","name":"n","plugins":[{plugins}]}}"#);
    let stock = list(r#"{"type":"a"},{"type":"istio-cni"}"#);
    let marked = list(r#"{"type":"a"},{"type":"istio-cni","sluice":{"primary":"10-a.conf"}}"#);
    assert!(matches!(kind("02-istio-cni.conflist", &stock), Kind::Owned(Some(_))));
    assert!(matches!(kind("99-x.conflist", &marked), Kind::Owned(Some(_))));
    assert!(matches!(kind("10-a.conflist", &stock), Kind::Primary(p) if p.carries));
    let plain = list(r#"{"type":"a"}"#);
    assert!(matches!(kind("02-istio-cni.conflist", &plain), Kind::Owned(Some(p)) if !p.carries));
    assert_eq!(kind("02-istio-cni.conflist", "{"), Kind::Owned(None));
    assert_eq!(kind("10-a.conflist", &list(r#"{"type":"istio-cni"}"#)), Kind::Standalone);
    assert_eq!(kind("YYY-istio-cni.conf", r#"{"type":"istio-cni"}"#), Kind::Standalone);
    assert_eq!(
        kind("00-m.conf", &format!(r#"{{"type":"multus","delegates":[{marked}]}}"#)),
        Kind::Derived
    );
    // Istio's chain inside is not ours, and does not hold our file.
    let holds_stock = format!(r#"{{"type":"multus","delegates":[{stock}]}}"#);
    assert!(matches!(kind("00-m.conf", &holds_stock), Kind::Primary(_)));
    // A list in a .conf, or the other way round, is not what a runtime loads.
    assert!(matches!(kind("a.conf", &plain), Kind::Invalid(_)));
    assert!(matches!(kind("a.conflist", r#"{"name":"n","type":"a"}"#), Kind::Invalid(_)));
}
