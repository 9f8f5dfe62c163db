//! The modules of one crate as its source text declares them, and where a path that is written in one of them
//! leads.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use syn::{Attribute, Item, UseTree};

/// Source files by their path below the crate's `src`.
pub(crate) type Sources = BTreeMap<PathBuf, String>;

/// Reads each `.rs` file below `src`.
pub(crate) fn read(src: &Path) -> Result<Sources> {
    let mut sources = Sources::new();
    let mut folders = vec![src.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path)?;
                sources.insert(path.strip_prefix(src)?.to_path_buf(), text);
            }
        }
    }
    Ok(sources)
}

/// A module: the crate's root, a file, or a block in a file.
pub(crate) struct Module {
    pub(crate) file: PathBuf,
    pub(crate) items: Vec<Item>,
    parent: Option<usize>,
    root: usize,
    names: HashMap<String, Vec<Name>>,
    globs: Vec<Vec<String>>,
}

/// What a name stands for in a module; one name may stand for several things (a module and a function).
#[derive(Clone)]
enum Name {
    Here,
    Module(usize),
    Alias(Vec<String>),
}

/// Where a path leads.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Module(usize),
    /// An item that this module defines.
    Item(usize),
}

/// All modules of the programs and libraries below one `src`, without test code.
pub(crate) struct Modules {
    pub(crate) all: Vec<Module>,
}

/// An item that is compiled for tests only.
pub(crate) fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("test")
            || attribute.path().is_ident("cfg")
                && attribute
                    .parse_args::<syn::Ident>()
                    .is_ok_and(|condition| condition == "test")
    })
}

impl Modules {
    /// Parses a crate: from `lib.rs`, `main.rs` and the programs below `bin`, along the `mod` declarations.
    pub(crate) fn parse(sources: &Sources) -> Result<Modules> {
        let mut modules = Modules { all: Vec::new() };
        for file in sources.keys() {
            let parts: Vec<_> = file.iter().map(|part| part.to_string_lossy()).collect();
            let parts: Vec<&str> = parts.iter().map(|part| part.as_ref()).collect();
            if matches!(
                parts[..],
                ["lib.rs" | "main.rs"] | ["bin", _] | ["bin", _, "main.rs"]
            ) {
                let folder = file.parent().unwrap_or(Path::new("")).to_path_buf();
                modules.file(sources, file, &folder, None)?;
            }
        }
        Ok(modules)
    }

    /// Takes in a file whose `mod x;` are found in `folder`.
    fn file(
        &mut self,
        sources: &Sources,
        file: &Path,
        folder: &Path,
        parent: Option<usize>,
    ) -> Result<usize> {
        let text = sources
            .get(file)
            .with_context(|| format!("{} is missing", file.display()))?;
        let parsed = syn::parse_file(text).with_context(|| file.display().to_string())?;
        self.module(sources, file, folder, parent, parsed.items)
    }

    fn module(
        &mut self,
        sources: &Sources,
        file: &Path,
        folder: &Path,
        parent: Option<usize>,
        items: Vec<Item>,
    ) -> Result<usize> {
        let id = self.all.len();
        let root = parent.map_or(id, |parent| self.all[parent].root);
        let (names, globs) = declared(&items);
        self.all.push(Module {
            file: file.to_path_buf(),
            items: Vec::new(),
            parent,
            root,
            names,
            globs,
        });
        let mut kept = Vec::new();
        for item in items {
            let Item::Mod(child) = item else {
                kept.push(item);
                continue;
            };
            if is_test(&child.attrs) {
                continue;
            }
            let name = child.ident.to_string();
            let below = folder.join(&name);
            let child = match child.content {
                Some((_, items)) => self.module(sources, file, &below, Some(id), items)?,
                None => match explicit_path(&child.attrs) {
                    Some(path) => {
                        let path = file.parent().unwrap_or(Path::new("")).join(path);
                        self.file(sources, &path, &below, Some(id))?
                    }
                    None => {
                        let beside = folder.join(format!("{name}.rs"));
                        let within = below.join("mod.rs");
                        let path = if sources.contains_key(&beside) {
                            beside
                        } else {
                            within
                        };
                        self.file(sources, &path, &below, Some(id))?
                    }
                },
            };
            self.all[id]
                .names
                .entry(name)
                .or_default()
                .push(Name::Module(child));
        }
        self.all[id].items = kept;
        Ok(id)
    }

    /// The files that define what `path`, written in `module`, leads to; empty for another crate's.
    pub(crate) fn definitions(&self, module: usize, path: &[String]) -> BTreeSet<&Path> {
        let mut seen = BTreeSet::new();
        let places = self.resolve(module, path, &mut seen);
        places
            .into_iter()
            .map(|place| match place {
                Place::Module(id) | Place::Item(id) => self.all[id].file.as_path(),
            })
            .collect()
    }

    /// Follows a path from the module in which it is written.
    fn resolve(
        &self,
        module: usize,
        path: &[String],
        seen: &mut BTreeSet<(usize, Vec<String>)>,
    ) -> BTreeSet<Place> {
        if !seen.insert((module, path.to_vec())) {
            return BTreeSet::new();
        }
        let Some((first, rest)) = path.split_first() else {
            return BTreeSet::from([Place::Module(module)]);
        };
        match first.as_str() {
            "crate" => self.resolve(self.all[module].root, rest, seen),
            "self" => self.resolve(module, rest, seen),
            "super" => match self.all[module].parent {
                Some(parent) => self.resolve(parent, rest, seen),
                None => BTreeSet::new(),
            },
            name => self.named(module, name, rest, seen),
        }
    }

    /// What `name` and the path after it lead to in `module`.
    fn named(
        &self,
        module: usize,
        name: &str,
        rest: &[String],
        seen: &mut BTreeSet<(usize, Vec<String>)>,
    ) -> BTreeSet<Place> {
        let mut found = BTreeSet::new();
        for meaning in self.all[module].names.get(name).into_iter().flatten() {
            match meaning {
                Name::Here => drop(found.insert(Place::Item(module))),
                Name::Module(child) => found.extend(self.resolve(*child, rest, seen)),
                // Where a module and a function have one name (`use self::run::run`), a path goes on in the
                // module.
                Name::Alias(_) if !rest.is_empty() && self.children(module, name).next().is_some() => {}
                Name::Alias(target) => {
                    let through: Vec<String> = target.iter().chain(rest).cloned().collect();
                    // `use a::a` is not about itself: without a module of that name it is another crate's.
                    let itself = through.first().is_some_and(|first| first == name);
                    if self.begins_here(module, &through)
                        && (!itself || self.children(module, name).next().is_some())
                    {
                        found.extend(self.resolve(module, &through, seen));
                    }
                }
            }
        }
        if !self.all[module].names.contains_key(name) {
            for glob in &self.all[module].globs {
                let through: Vec<String> = glob
                    .iter()
                    .cloned()
                    .chain([name.to_owned()])
                    .chain(rest.iter().cloned())
                    .collect();
                if self.begins_here(module, &through) {
                    found.extend(self.resolve(module, &through, seen));
                }
            }
        }
        found
    }

    fn children(&self, module: usize, name: &str) -> impl Iterator<Item = usize> {
        self.all[module]
            .names
            .get(name)
            .into_iter()
            .flatten()
            .filter_map(|meaning| match meaning {
                Name::Module(child) => Some(*child),
                _ => None,
            })
    }

    /// Whether a path can lead into this crate at all.
    pub(crate) fn begins_here(&self, module: usize, path: &[String]) -> bool {
        path.first().is_some_and(|first| {
            matches!(first.as_str(), "crate" | "self" | "super") || self.all[module].names.contains_key(first)
        })
    }
}

/// The file that `#[path = "..."]` names.
fn explicit_path(attributes: &[Attribute]) -> Option<String> {
    attributes.iter().find_map(|attribute| match &attribute.meta {
        syn::Meta::NameValue(pair) if pair.path.is_ident("path") => match &pair.value {
            syn::Expr::Lit(syn::ExprLit {
                lit: syn::Lit::Str(path),
                ..
            }) => Some(path.value()),
            _ => None,
        },
        _ => None,
    })
}

/// The names that a module's items declare, modules aside, and the paths whose names it takes all.
fn declared(items: &[Item]) -> (HashMap<String, Vec<Name>>, Vec<Vec<String>>) {
    let mut names: HashMap<String, Vec<Name>> = HashMap::new();
    let mut globs = Vec::new();
    for item in items {
        let (attributes, name) = match item {
            Item::Const(item) => (&item.attrs, Some(&item.ident)),
            Item::Enum(item) => (&item.attrs, Some(&item.ident)),
            Item::Fn(item) => (&item.attrs, Some(&item.sig.ident)),
            Item::Macro(item) => (&item.attrs, item.ident.as_ref()),
            Item::Static(item) => (&item.attrs, Some(&item.ident)),
            Item::Struct(item) => (&item.attrs, Some(&item.ident)),
            Item::Trait(item) => (&item.attrs, Some(&item.ident)),
            Item::Type(item) => (&item.attrs, Some(&item.ident)),
            Item::Union(item) => (&item.attrs, Some(&item.ident)),
            Item::Use(item) => {
                if !is_test(&item.attrs) && item.leading_colon.is_none() {
                    for import in imports(&item.tree) {
                        match import.name {
                            Some(name) => names.entry(name).or_default().push(Name::Alias(import.path)),
                            None => globs.push(import.path),
                        }
                    }
                }
                continue;
            }
            _ => continue,
        };
        if let Some(name) = name
            && !is_test(attributes)
        {
            names.entry(name.to_string()).or_default().push(Name::Here);
        }
    }
    (names, globs)
}

/// One name of a `use` line.
pub(crate) struct Import {
    pub(crate) path: Vec<String>,
    /// None: all names of `path`.
    name: Option<String>,
}

/// The imports of a `use` line, one by one.
pub(crate) fn imports(tree: &UseTree) -> Vec<Import> {
    fn walk(tree: &UseTree, path: &mut Vec<String>, found: &mut Vec<Import>) {
        match tree {
            UseTree::Path(next) => {
                path.push(next.ident.to_string());
                walk(&next.tree, path, found);
                path.pop();
            }
            UseTree::Name(name) => leaf(path, &name.ident.to_string(), None, found),
            UseTree::Rename(name) => {
                leaf(
                    path,
                    &name.ident.to_string(),
                    Some(name.rename.to_string()),
                    found,
                );
            }
            UseTree::Glob(_) => found.push(Import {
                path: path.clone(),
                name: None,
            }),
            UseTree::Group(group) => group.items.iter().for_each(|tree| walk(tree, path, found)),
        }
    }
    /// `a::{self}` names `a` itself.
    fn leaf(path: &[String], name: &str, alias: Option<String>, found: &mut Vec<Import>) {
        let mut path = path.to_vec();
        if name != "self" || path.is_empty() {
            path.push(name.to_owned());
        }
        let name = alias.or_else(|| path.last().cloned());
        found.push(Import { path, name });
    }
    let mut found = Vec::new();
    walk(tree, &mut Vec::new(), &mut found);
    found
}
