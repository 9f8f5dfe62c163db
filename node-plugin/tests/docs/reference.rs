//! docs/volume-reference.md is what the tables of keys and options say.

use std::collections::HashMap;

use blob_client::Patience;
use vsc_blob_csi::csi::account::Account;
use vsc_blob_csi::csi::volume_context::{
    ALWAYS, Attributes, INSTEAD, KEYS, MountOptions, OPTIONS, Place, SECRET_KEYS, SYSTEM_PREFIXES, Scope,
    Secrets, VARIABLES, Values,
};
use vsc_blob_csi::error::Reason;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/volume-reference.md");

const START: &str = "# Volumes: reference

<!-- Made of node-plugin/src/csi/volume_context/table.rs: change the comments there, and run
UPDATE_DOCS=1 cargo test -p vsc-blob-csi --test docs -->

What can be written about a volume. What it means as a whole - secrets, identities, owners, what a node \
    does - is in [volumes.md](volumes.md); `deploy/examples` has a
manifest for each kind, and each key of this page is in one of them. Names follow blob.csi.azure.com where \
    the meaning is the same.

Keys are not case-sensitive, and a key with an empty value counts as not given. An unknown key is refused \
    with the nearest known one, and so is a setting this release does not
implement: nothing is ignored in silence.";

const KEYS_START: &str = "## Attributes and parameters

`volumeAttributes` of a PersistentVolume or of an inline volume, `parameters` of a StorageClass. All values \
    are strings: `\"true\"`, with quotes.
A key without a word in the second column may stand in each of them.";

const VARIABLES_START: &str = "### Variables

In `containerName` and `prefix` of a StorageClass these stand for what the claim says:";

const SECRETS_START: &str = "## Keys of a Secret

Other keys of the Secret are left alone. Where a Secret is named, and who reads it: \
    [Secrets](volumes.md#secrets).";

const OPTIONS_START: &str = "## Mount options

`mountOptions` of a PersistentVolume or of a StorageClass. blobfuse2's spellings (`-o uid=1000`, \
    `--attr-timeout=7`, `--read-only=true`) mean the same.";

fn code(words: impl IntoIterator<Item = &'static str>) -> String {
    let words: Vec<_> = words.into_iter().map(|word| format!("`{word}`")).collect();
    words.join(", ")
}

/// A table's row.
fn row(cells: &[&str]) -> String {
    let cells: Vec<_> = cells.iter().map(|cell| cell.trim().replace('|', "\\|")).collect();
    format!("| {} |\n", cells.join(" | "))
}

fn head(cells: &[&str]) -> String {
    format!("{}|{}\n", row(cells), "---|".repeat(cells.len()))
}

fn attributes() -> String {
    let mut text = head(&["key", "where", "takes", "default", "meaning"]);
    for key in KEYS {
        let place = match key.place {
            Place::Anywhere => "",
            Place::NotInline => "not inline",
            Place::Class => "class",
        };
        let takes = match key.values {
            Values::OneOf(words) => code(words()),
            Values::Boolean => code(["true", "false"]),
            Values::Text(text) => text.to_owned(),
        };
        let default = code(Some(key.default).filter(|default| !default.is_empty()));
        text.push_str(&row(&[&code([key.name]), place, &takes, &default, key.meaning]));
    }
    text
}

fn secrets() -> String {
    let mut text = head(&["key", "also", "meaning"]);
    for key in SECRET_KEYS {
        let alias = code(Some(key.alias).filter(|alias| !alias.is_empty()));
        text.push_str(&row(&[&code([key.name]), &alias, key.meaning]));
    }
    text
}

fn options() -> String {
    let mut text = head(&["option", "takes", "default", "meaning"]);
    for option in OPTIONS {
        let name = match option.value {
            "" => option.name.to_owned(),
            _ => format!("{}=", option.name),
        };
        text.push_str(&row(&[
            &format!("`{name}`"),
            option.value,
            option.default,
            option.meaning,
        ]));
    }
    text
}

fn instead() -> String {
    let mut text = head(&["option", "instead"]);
    for (option, instead) in INSTEAD {
        text.push_str(&row(&[&code([*option]), instead]));
    }
    text
}

/// The page as it has to be.
fn page() -> String {
    let system: Vec<_> = SYSTEM_PREFIXES
        .iter()
        .map(|prefix| format!("`{prefix}`"))
        .collect();
    [
        START.to_owned(),
        KEYS_START.to_owned(),
        attributes(),
        format!(
            "Keys that begin with {} belong to Kubernetes and are accepted everywhere.",
            system.join(" or ")
        ),
        VARIABLES_START.to_owned(),
        code(VARIABLES),
        SECRETS_START.to_owned(),
        secrets(),
        OPTIONS_START.to_owned(),
        options(),
        format!(
            "What every mount is may be asked for and changes nothing: {}.",
            code(ALWAYS.iter().copied())
        ),
        "Others are refused by name, with `UnknownMountOption` and a volume that does not start, rather than \
         ignored. What is asked for most:"
            .to_owned(),
        instead(),
    ]
    .map(|part| part.trim_end().to_owned())
    .join("\n\n")
        + "\n"
}

#[test]
fn the_reference_is_what_the_tables_say() {
    let wanted = page();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(PAGE, &wanted).unwrap();
    }
    let text = std::fs::read_to_string(PAGE).unwrap_or_default();
    let differs = text.lines().zip(wanted.lines()).find(|(is, wanted)| is != wanted);
    assert!(
        text == wanted,
        "docs/volume-reference.md differs from the tables, first here (is, should be): {differs:?}; run with \
         UPDATE_DOCS=1"
    );
}

#[test]
fn each_row_says_something() {
    for key in KEYS {
        assert!(key.meaning.trim().ends_with('.'), "{}", key.name);
    }
    for key in SECRET_KEYS {
        assert!(key.meaning.trim().ends_with('.'), "{}", key.name);
    }
    for option in OPTIONS {
        assert!(option.meaning.trim().ends_with(['.', ')']), "{}", option.name);
        assert!(!option.default.is_empty(), "{}", option.name);
    }
}

fn class(pairs: &[(&str, &str)]) -> Attributes {
    let map: HashMap<_, _> = pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    Attributes::parse(&map, Scope::Class).unwrap_or_else(|error| panic!("{pairs:?}: {error}"))
}

/// What the page calls a default is what holds when nothing is written.
#[test]
fn defaults_of_the_tables_are_the_programs() {
    let mut seen = 0;
    for key in KEYS.iter().filter(|key| !key.default.is_empty()) {
        let mut written = class(&[(key.name, key.default)]);
        // Filled in later than the others.
        if let Some(suffix) = written.endpoint_suffix.take() {
            let named = Account::in_cloud("name", &suffix).unwrap();
            let silent = class(&[("storageAccount", "name")]);
            assert_eq!(Account::resolve(&silent, &Secrets::default()).unwrap(), named);
        }
        written.on_delete_given = false;
        assert_eq!(written, class(&[]), "{}", key.name);
        seen += 1;
    }
    assert!(seen >= 8, "{seen}");
    let default = |name: &str| OPTIONS.iter().find(|option| option.name == name).unwrap().default;
    assert_eq!(default("rename_limit"), blob_fs::config::RENAME_LIMIT.to_string());
    assert_eq!(default("timeout").parse::<Patience>(), Ok(Patience::default()));
    let silent = MountOptions::default();
    let [(file, folder), (group_file, group_folder)] = [silent.modes(false), silent.modes(true)];
    for (option, plain, grouped) in [
        ("file_mode", file, group_file),
        ("dir_mode", folder, group_folder),
    ] {
        let wanted = format!("0{plain:o}, with an `fsGroup` 0{grouped:o}");
        assert_eq!(default(option), wanted);
    }
}

/// Each of the words of the page is taken, and what it says is refused is refused as it says.
#[test]
fn what_the_tables_offer_is_taken() {
    for key in KEYS {
        let words = match key.values {
            Values::OneOf(words) => words(),
            Values::Boolean => vec!["false"],
            Values::Text(_) => continue,
        };
        for word in words {
            class(&[(key.name, word)]);
        }
    }
    for option in OPTIONS {
        let value = match option.value {
            "" => "true",
            _ if option.name == "timeout" => "60s",
            _ => "1",
        };
        MountOptions::parse(&[format!("{}={value}", option.name)])
            .unwrap_or_else(|error| panic!("{}: {error}", option.name));
    }
    for (option, instead) in INSTEAD {
        let refused = MountOptions::parse(&[*option]).unwrap_err();
        assert_eq!(refused.reason, Reason::UnknownMountOption);
        assert!(refused.to_string().contains(instead), "{refused}");
    }
    for variable in VARIABLES {
        let attributes = class(&[
            ("prefix", variable),
            ("csi.storage.k8s.io/pvc/name", "it"),
            ("csi.storage.k8s.io/pvc/namespace", "it"),
            ("csi.storage.k8s.io/pv/name", "it"),
        ]);
        assert_eq!(attributes.expanded_prefix().unwrap().as_deref(), Some("it"));
    }
}
