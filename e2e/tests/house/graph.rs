//! Which file of a crate imports from which, and the cycles among them.
//!
//! An edge is a path in a `use` line or in the code itself, also inside a macro's call, that leads to an item
//! or a module of another file. A `mod x;` is none, a call of a method is none, and test code is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use proc_macro2::{Span, TokenStream, TokenTree};
use syn::visit::{self, Visit};

use crate::modules::{Modules, Sources, imports, is_test};

/// The edges of a crate, each with the line of one example: from, to, line.
pub(crate) struct Graph {
    edges: BTreeMap<(PathBuf, PathBuf), usize>,
}

/// Files of which each imports from each other in the end.
pub(crate) type Cycle = BTreeSet<PathBuf>;

impl Graph {
    pub(crate) fn of(sources: &Sources) -> Result<Graph> {
        let modules = Modules::parse(sources)?;
        let mut graph = Graph {
            edges: BTreeMap::new(),
        };
        for (id, module) in modules.all.iter().enumerate() {
            let mut paths = Paths {
                modules: &modules,
                module: id,
                file: &module.file,
                graph: &mut graph,
            };
            module.items.iter().for_each(|item| paths.visit_item(item));
        }
        Ok(graph)
    }

    /// The edges as pairs of files.
    pub(crate) fn edges(&self) -> impl Iterator<Item = (&Path, &Path)> {
        self.edges.keys().map(|(from, to)| (from.as_path(), to.as_path()))
    }

    /// The strongly connected components of more than one file.
    pub(crate) fn cycles(&self) -> Vec<Cycle> {
        let mut next: BTreeMap<&Path, BTreeSet<&Path>> = BTreeMap::new();
        for (from, to) in self.edges() {
            next.entry(from).or_default().insert(to);
        }
        let reached: BTreeMap<&Path, BTreeSet<&Path>> =
            next.keys().map(|from| (*from, reachable(&next, from))).collect();
        let mut cycles: Vec<Cycle> = Vec::new();
        for (from, within) in &reached {
            if !within.contains(from) || cycles.iter().any(|cycle| cycle.contains(*from)) {
                continue;
            }
            let back = |to: &&&Path| reached.get(**to).is_some_and(|within| within.contains(from));
            cycles.push(
                within
                    .iter()
                    .filter(back)
                    .map(|file| file.to_path_buf())
                    .collect(),
            );
        }
        cycles
    }

    /// The cycles between the folders of the crate, each told by the edges that cross from one to another. A
    /// file beside the folders counts as one of its own, or as part of the folder of its name.
    pub(crate) fn folder_cycles(&self, sources: &Sources) -> Vec<String> {
        let crossing = self
            .edges
            .iter()
            .filter(|((from, to), _)| folder(from) != folder(to));
        let crossing: BTreeMap<(PathBuf, PathBuf), usize> =
            crossing.map(|(edge, line)| (edge.clone(), *line)).collect();
        let between = crossing
            .iter()
            .map(|((from, to), line)| ((folder(from), folder(to)), *line));
        let folders = Graph {
            edges: between.collect(),
        };
        let crossing = Graph { edges: crossing };
        let told = folders.cycles().into_iter().map(|cycle| {
            let files = crossing.edges().flat_map(|(from, to)| [from, to]);
            let files = files.filter(|file| cycle.contains(&folder(file)));
            crossing.describe(&files.map(Path::to_path_buf).collect(), sources)
        });
        told.collect()
    }

    /// A cycle for a reader: each edge with an example.
    pub(crate) fn describe(&self, cycle: &Cycle, sources: &Sources) -> String {
        let mut text = format!("a cycle of {} files\n", cycle.len());
        for ((from, to), line) in &self.edges {
            if cycle.contains(from) && cycle.contains(to) {
                let source = sources
                    .get(from)
                    .and_then(|text| text.lines().nth(line - 1))
                    .unwrap_or("");
                let (from, to) = (from.display(), to.display());
                let _ = writeln!(text, "  {from}:{line} -> {to}: {}", source.trim());
            }
        }
        text
    }
}

/// The folder of the crate in which a file lies, or whose module it is.
fn folder(file: &Path) -> PathBuf {
    let first = file.iter().next().unwrap_or_default();
    Path::new(first).with_extension("")
}

fn reachable<'a>(next: &BTreeMap<&'a Path, BTreeSet<&'a Path>>, from: &'a Path) -> BTreeSet<&'a Path> {
    let mut found = BTreeSet::new();
    let mut open = vec![from];
    while let Some(file) = open.pop() {
        for to in next.get(file).into_iter().flatten() {
            if found.insert(*to) {
                open.push(to);
            }
        }
    }
    found
}

/// Collects the paths of one module.
struct Paths<'a> {
    modules: &'a Modules,
    module: usize,
    file: &'a Path,
    graph: &'a mut Graph,
}

impl Paths<'_> {
    fn edge(&mut self, path: &[String], at: Span) {
        if !self.modules.begins_here(self.module, path) {
            return;
        }
        for file in self.modules.definitions(self.module, path) {
            if file != self.file {
                let key = (self.file.to_path_buf(), file.to_path_buf());
                self.graph.edges.entry(key).or_insert(at.start().line);
            }
        }
    }

    /// A macro's call is not parsed: its paths are found by their `::`.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut begin = Span::call_site();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Ident(ident) => {
                    if path.is_empty() || colons != 2 {
                        self.written(&path, begin);
                        path.clear();
                        begin = ident.span();
                    }
                    path.push(ident.to_string());
                    colons = 0;
                }
                other => {
                    self.written(&path, begin);
                    path.clear();
                    if let TokenTree::Group(group) = other {
                        self.tokens(group.stream());
                    }
                }
            }
        }
        self.written(&path, begin);
    }

    /// A single word is a local name, and an imported one has its `use`.
    fn written(&mut self, path: &[String], at: Span) {
        if path.len() > 1 {
            self.edge(path, at);
        }
    }
}

impl<'ast> Visit<'ast> for Paths<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let attributes: &[syn::Attribute] = match item {
            syn::Item::Const(item) => &item.attrs,
            syn::Item::Enum(item) => &item.attrs,
            syn::Item::Fn(item) => &item.attrs,
            syn::Item::Impl(item) => &item.attrs,
            syn::Item::Macro(item) => &item.attrs,
            syn::Item::Static(item) => &item.attrs,
            syn::Item::Struct(item) => &item.attrs,
            syn::Item::Trait(item) => &item.attrs,
            syn::Item::Type(item) => &item.attrs,
            syn::Item::Use(item) => &item.attrs,
            _ => &[],
        };
        if !is_test(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, method: &'ast syn::ImplItemFn) {
        if !is_test(&method.attrs) {
            visit::visit_impl_item_fn(self, method);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if item.leading_colon.is_none() {
            for import in imports(&item.tree) {
                self.edge(&import.path, item.use_token.span);
            }
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.leading_colon.is_none()
            && let Some(first) = path.segments.first()
        {
            let segments: Vec<String> = path
                .segments
                .iter()
                .map(|segment| segment.ident.to_string())
                .collect();
            self.written(&segments, first.ident.span());
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.visit_path(&call.path);
        self.tokens(call.tokens.clone());
    }

    /// `pub(in crate::a)` says who may look, and imports nothing.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}
}
