use std::collections::BTreeMap;
use std::ffi::OsString;

use proptest::prelude::*;

use super::*;
use crate::code;

fn environment(command: Command, set: &[(&str, &str)]) -> Result<Environment, Error> {
    let set: BTreeMap<&str, &str> = set.iter().copied().collect();
    Environment::parse(command, |name| set.get(name).map(OsString::from))
}

const FULL: [(&str, &str); 4] =
    [("CNI_CONTAINERID", "c1"), ("CNI_NETNS", "/n"), ("CNI_IFNAME", "eth0"), ("CNI_PATH", "/bin")];

#[test]
fn each_command_has_its_variables() {
    for (command, needed) in [
        (Command::Add, 4),
        (Command::Check, 4),
        (Command::Del, 3),
        (Command::Status, 0),
        (Command::Gc, 1),
        (Command::Version, 0),
    ] {
        let error = environment(command, &[]).err();
        assert_eq!(error.map_or(0, |e| e.msg.matches("CNI_").count()), needed, "{command:?}");
        environment(command, &FULL).unwrap();
    }
}

#[test]
fn values_that_a_command_does_not_need_are_not_looked_at() {
    // podman's VERSION and containerd's STATUS.
    for command in [Command::Version, Command::Status, Command::Gc] {
        environment(
            command,
            &[("CNI_IFNAME", "a/b"), ("CNI_CONTAINERID", "../x"), ("CNI_PATH", "/x")],
        )
        .unwrap();
    }
}

#[test]
fn a_variable_that_is_not_utf8_is_named() {
    use std::os::unix::ffi::OsStringExt;
    let get = |name: &str| (name == "CNI_NETNS").then(|| OsString::from_vec(b"/run/\xff".to_vec()));
    let error = Environment::parse(Command::Add, get).unwrap_err();
    assert_eq!(error.code, code::INVALID_ENVIRONMENT);
    assert!(error.msg.contains("CNI_NETNS"), "{error}");
}

#[test]
fn container_ids_of_real_runtimes_are_allowed() {
    for id in ["0123abcdef", "ABC", "cnitool-20c433bb2b1d6ede56d6", "a.b_c-d"] {
        let mut set = FULL;
        set[0].1 = id;
        assert_eq!(environment(Command::Add, &set).unwrap().container_id, id);
    }
}

#[test]
fn the_last_of_equal_arguments_counts_as_in_libcni() {
    let args = Args::parse("K8S_POD_NAME=a;K8S_POD_NAME=b;K8S_POD_NAMESPACE=x=y").unwrap();
    assert_eq!((args.pod_name.as_str(), args.pod_namespace.as_str()), ("b", "x=y"));
    assert!(args.is_pod());
}

#[test]
fn ignore_unknown_counts_wherever_it_stands() {
    Args::parse("A=1;IgnoreUnknown=1").unwrap();
    Args::parse("IgnoreUnknown=TRUE;A=1").unwrap();
    assert!(Args::parse("IgnoreUnknown=0;A=1").unwrap_err().msg.contains('A'));
}

#[test]
fn istios_configuration_is_read() {
    let config = Config::parse(
        br#"{"cniVersion":"0.3.1","name":"istio-cni","type":"istio-cni","ipam":{},"dns":{},
        "plugin_log_level":"debug","cni_agent_run_dir":"/path","ambient_enabled":true,
        "enablement_selectors":[{"podSelector":{}}],"exclude_namespaces":null,"pod_namespace":"my",
        "native_nftables":false,"enable_ambient_detection_retry":false}"#,
    )
    .unwrap();
    assert_eq!(config.check(Command::Add), Ok(Version::V0_3_1));
    assert_eq!(config.log_level(), LogLevel::Debug);
    assert_eq!((config.run_dir(), config.agent_namespace()), ("/path", "my"));
    assert!(!config.excludes("kube-system"));
    assert_eq!(config.timeout(), Config::default_timeout());
    assert!(config.prev_result().unwrap().is_none());
}

#[test]
fn defaults_stand_where_nothing_is_said() {
    let config = Config::parse(br#"{"cni_agent_run_dir":"","exclude_namespaces":["a"]}"#).unwrap();
    assert_eq!(config.run_dir(), crate::request::DEFAULT_RUN_DIR);
    assert_eq!((config.log_level(), config.agent_namespace()), (LogLevel::Info, ""));
    assert!(config.excludes("a") && !config.excludes("ab"));
}

#[test]
fn an_error_object_is_read_as_it_is_written() {
    let mut error = Error::new(104, "annotation \"x\"", "");
    assert_eq!(error.to_json(), br#"{"code":104,"msg":"annotation \"x\""}"#);
    error.cni_version = Some("1.0.0".into());
    error.details = "next".into();
    let text = error.to_json();
    assert_eq!(
        text,
        br#"{"cniVersion":"1.0.0","code":104,"msg":"annotation \"x\"","details":"next"}"#
    );
    assert_eq!(serde_json::from_slice::<Error>(&text).unwrap(), error);
}

#[test]
fn the_last_of_equal_keys_of_a_result_counts_as_in_go() {
    let stdin = br#"{"prevResult":{"ips":7,"ips":[{"address":"x","address":"10.0.0.5/8"}]}}"#;
    let config = Config::parse(stdin).unwrap();
    let ips = config.prev_result().unwrap().unwrap().addresses().unwrap();
    assert_eq!(ips[0].address.addr(), Some("10.0.0.5".parse().unwrap()));
}

#[test]
fn empty_lists_of_addresses_in_go() {
    for result in ["{}", r#"{"ips":null}"#, r#"{"ips":[]}"#, r#"{"ip4":null}"#] {
        let stdin = format!(r#"{{"prevResult":{result}}}"#);
        let config = Config::parse(stdin.as_bytes()).unwrap();
        assert_eq!(config.prev_result().unwrap().unwrap().addresses().unwrap(), []);
    }
}

#[test]
fn version_replies() {
    assert!(version_reply(Some("0.4.0")).starts_with(r#"{"cniVersion":"0.4.0","#));
    assert!(version_reply(Some("\"}")).starts_with(r#"{"cniVersion":"1.1.0","#));
    assert!(Version::ALL.is_sorted());
}

/// Any JSON value as text, white space and escapes included.
fn json_text() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        "-?(0|[1-9][0-9]{0,40})(\\.[0-9]{1,30})?([eE][+-]?[0-9]{1,5})?",
        "\"([ !#-\\[\\]-~é😀]|\\\\u[0-9a-c][0-9a-f]{3}|\\\\[nrtbf/\"\\\\]){0,12}\"",
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            (prop::collection::vec(inner.clone(), 0..5), "[ \t\r\n]{0,3}").prop_map(
                |(items, blank)| format!("[{blank}{}{blank}]", items.join(&format!("{blank},")))
            ),
            (prop::collection::vec(("[a-c]{0,2}", inner), 0..5), "[ \t\r\n]{0,3}").prop_map(
                |(fields, blank)| {
                    let fields: Vec<String> =
                        fields.iter().map(|(k, v)| format!("\"{k}\"{blank}:{blank}{v}")).collect();
                    format!("{{{blank}{}{blank}}}", fields.join(","))
                }
            ),
        ]
    })
}

proptest! {
    #[test]
    fn a_result_is_kept_byte_for_byte(value in json_text(), blank in "[ \t\r\n]{0,3}") {
        let stdin = format!("{{\"prevResult\":{blank}{{\"x\":{value}}}{blank},\"name\":\"n\"}}");
        let config = Config::parse(stdin.as_bytes()).unwrap();
        let result = config.prev_result().unwrap().unwrap();
        let expected = format!("{{\"x\":{value}}}");
        prop_assert_eq!(result.as_bytes(), expected.as_bytes());
        prop_assert_eq!(result.addresses().unwrap(), vec![]);
    }

    #[test]
    fn no_stdin_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        look_at(&bytes);
    }

    #[test]
    fn no_json_panics(value in json_text(), key in "(ips|ip4|ip6|x)") {
        look_at(value.as_bytes());
        look_at(format!(r#"{{"cniVersion":{value},"name":"n"}}"#).as_bytes());
        look_at(format!(r#"{{"prevResult":{value},"cni.dev/valid-attachments":{value}}}"#).as_bytes());
        look_at(format!(r#"{{"prevResult":{{"{key}":{value}}}}}"#).as_bytes());
        look_at(format!(r#"{{"prevResult":{{"{key}":[{{"address":{value},"interface":{value}}}]}}}}"#).as_bytes());
    }

    #[test]
    fn an_address_is_right_or_refused(text in "[0-9a-f.:/]{0,20}") {
        let stdin = format!(r#"{{"prevResult":{{"ips":[{{"address":"{text}"}}]}}}}"#);
        let config = Config::parse(stdin.as_bytes()).unwrap();
        if let Ok(ips) = config.prev_result().unwrap().unwrap().addresses() {
            let (ip, prefix) = text.split_once('/').unwrap();
            prop_assert_eq!(ips[0].address.addr(), Some(ip.parse::<std::net::IpAddr>().unwrap().to_canonical()));
            prop_assert!(prefix.parse::<u8>().unwrap() <= 128);
        }
    }

    #[test]
    fn no_arguments_panic(text in ".{0,100}", pairs in "(([A-Z_]{1,5}|K8S_POD_NAME|IgnoreUnknown)=[a-z0-1]{0,4};?){0,5}") {
        let _ = Args::parse(&text);
        let _ = Args::parse(&pairs);
    }

    #[test]
    fn no_environment_panics(value in ".{0,40}") {
        for command in Command::ALL {
            let _ = Environment::parse(command, |_| Some(OsString::from(&value)));
        }
        let _ = Command::parse(&value);
    }

    #[test]
    fn a_container_id_that_is_taken_is_a_plain_file_name(id in ".{0,20}") {
        let mut set = FULL;
        set[0].1 = &id;
        if environment(Command::Add, &set).is_ok() {
            prop_assert!(!id.contains(['/', '\0', '\n']) && !id.starts_with('.'));
        }
    }
}

fn look_at(stdin: &[u8]) {
    let Ok(config) = Config::parse(stdin) else { return };
    for command in Command::ALL {
        let _ = config.check(command);
    }
    if let Ok(Some(result)) = config.prev_result() {
        let _ = result.addresses();
    }
    let _ = config.valid_attachments();
    let _ = (config.log_level(), config.timeout(), config.run_dir().len());
}

#[test]
fn hints_are_what_the_runtime_said_and_never_an_error() {
    let hints = |json: &str| {
        let text = format!("{{\"runtimeConfig\":{json}}}");
        Config::parse(text.as_bytes()).unwrap().hints()
    };
    let key = "io.kubernetes.cri.pod-annotations";
    let said = hints(&format!(
        r#"{{"{key}":{{"sidecar.istio.io/status":"{{}}","kubernetes.io/config.seen":"x"}},"cgroupPath":"/kubepods/p"}}"#
    ));
    assert_eq!(
        said.annotations.unwrap().into_keys().collect::<Vec<_>>(),
        ["sidecar.istio.io/status"]
    );
    assert_eq!(said.cgroup_path, "/kubepods/p");
    let said = hints(&format!(r#"{{"{key}":{{"kubernetes.io/config.seen":"x"}}}}"#));
    assert_eq!(said.annotations, Some(BTreeMap::new()), "said, and nothing of the mesh's");
    for unsaid in [
        "null".to_owned(),
        "{}".to_owned(),
        "7".to_owned(),
        r#"{"cgroupPath":null}"#.to_owned(),
        format!(r#"{{"{key}":null}}"#),
        format!(r#"{{"{key}":{{}}}}"#),
        format!(r#"{{"{key}":["a"]}}"#),
        format!(r#"{{"{key}":{{"a":1}}}}"#),
    ] {
        assert_eq!(hints(&unsaid), Hints::default(), "{unsaid}");
    }
    assert_eq!(Config::parse(b"{}").unwrap().hints(), Hints::default());
}
