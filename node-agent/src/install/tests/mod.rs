//! The installer as a whole, on real directories.

mod agent;
mod faults;
mod node;
mod storm;

pub(super) use node::{Node, entry};

use super::*;

#[test]
fn istios_settings_choose_the_mode() {
    let owned = |name: Option<&str>| Mode::Owned { file_name: name.map(str::to_owned) };
    assert_eq!(Mode::of(None, None, None, None), owned(None));
    assert_eq!(
        Mode::of(Some(true), Some(true), Some(""), Some("a.conflist")),
        owned(Some("a.conflist"))
    );
    let both = Mode::of(None, None, Some("b.conflist"), Some("a.conflist"));
    assert_eq!(both, owned(Some("b.conflist")));
    assert_eq!(Mode::of(Some(true), Some(false), None, None), Mode::InPlace);
    assert_eq!(Mode::of(Some(false), Some(true), None, None), Mode::Standalone);
}

#[test]
fn settings_that_cannot_work_are_named() {
    let check = |conf: &str, owned: Option<&str>| {
        let mode = Mode::Owned { file_name: owned.map(str::to_owned) };
        let conf_name = Some(conf.to_owned());
        Settings { conf_name, mode, ..Settings::new() }.check().map_err(|e| e.to_string())
    };
    assert_eq!(check("", None), Ok(()));
    assert_eq!(check("10-a.conf", Some("00-b.conflist")), Ok(()));
    assert!(check("../a.conf", None).unwrap_err().contains("CNI_CONF_NAME"));
    for wrong in ["a.conf", "x/a.conflist", ""] {
        let error = check("", Some(wrong)).unwrap_err();
        assert!(error.contains("ISTIO_OWNED_CNI_CONFIG_FILENAME"), "{error}");
    }
    assert!(check("a.conf", Some("a.conflist")).unwrap_err().contains("another"));
}
