//! Configuration: reads the file and the command line, and validates them into settings.

mod error;
mod paths;
mod raw;
mod settings;
mod spokes;
mod validate;

pub use error::{ConfigError, Mistake};
pub use paths::{DEFAULT_CONFIG, default_model};
pub use settings::{
    KernelChoice, LogFormat, LogSettings, MAX_SEQUENCES, ModelSettings, Paths, SamplingDefaults,
    ServerSettings, Settings, Timeouts,
};
pub use spokes::{GateSettings, LEAST_PROBE_MEMORY, Otherwise, SpokeChoice, SpokeSettings};

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Settings from the command line, which override the file. Relative paths are relative to the
/// working directory.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--listen`.
    pub listen: Option<SocketAddr>,
    /// `--model`.
    pub model: Option<PathBuf>,
    /// `--spokes`.
    pub spokes: Option<PathBuf>,
    /// `--state`.
    pub state: Option<PathBuf>,
}

/// Reads the configuration.
///
/// `file` is the path that the user named. Without it, [`DEFAULT_CONFIG`] is read if it exists;
/// otherwise everything has its default. Relative paths in the file are relative to the file's
/// folder.
///
/// # Errors
/// The named file can't be read, or contains mistakes; all mistakes are returned at once.
pub fn load(file: Option<&Path>, overrides: Overrides) -> Result<Settings, ConfigError> {
    let path = match file {
        Some(named) => Some(named.to_owned()),
        None => Some(PathBuf::from(DEFAULT_CONFIG)).filter(|path| path.exists()),
    };
    let Some(path) = path else {
        return Settings::new(raw::RawConfig::default(), Path::new("."), overrides)
            .map_err(|mistakes| ConfigError::Mistakes { path: PathBuf::from("defaults"), mistakes });
    };
    let text = fs_err::read_to_string(&path)
        .map_err(|source| ConfigError::Unreadable { path: path.clone(), source })?;
    let folder = path.parent().unwrap_or(Path::new("."));
    parse(&text, folder, overrides).map_err(|mistakes| ConfigError::Mistakes { path, mistakes })
}

/// Parses a file's text into settings. Mistakes of syntax and of meaning are collected together.
fn parse(text: &str, folder: &Path, overrides: Overrides) -> Result<Settings, Vec<Mistake>> {
    let (written, mut mistakes) = raw::read(text);
    match Settings::new(written, folder, overrides) {
        Ok(settings) if mistakes.is_empty() => return Ok(settings),
        Ok(_) => {}
        Err(more) => mistakes.extend(more),
    }
    for mistake in &mut mistakes {
        mistake.locate(text);
    }
    mistakes.sort_by_key(|mistake| mistake.line);
    Err(mistakes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn mistakes(text: &str) -> Vec<String> {
        let mistakes = parse(text, Path::new("/etc"), Overrides::default()).unwrap_err();
        mistakes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        let settings = parse("", Path::new("/etc"), Overrides::default()).unwrap();
        assert_eq!(settings.server.listen.to_string(), "127.0.0.1:8899");
        assert_eq!(settings.server.body_limit.as_u64(), 2 << 20);
        let greedy = SamplingDefaults {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            seed: None,
            thinking: false,
            task_limits: true,
        };
        assert_eq!(settings.sampling, greedy, "an absent temperature means greedy");
        assert!(settings.paths.spokes.is_absolute() && settings.model.path.is_absolute());
    }

    #[test]
    fn the_shipped_file_holds_exactly_the_defaults() {
        let shipped = include_str!("../../config/bespoke.toml");
        let uncommented: String = shipped
            .lines()
            .map(|line| line.strip_prefix("# ").filter(|rest| rest.contains(" = ")).unwrap_or(line))
            .fold(String::new(), |all, line| all + line + "\n");
        let folder = std::path::absolute("config").unwrap();
        let written = parse(&uncommented, &folder, Overrides::default()).unwrap();
        let plain = parse(shipped, &folder, Overrides::default()).unwrap();
        assert_eq!(plain.server, written.server);
        assert_eq!(plain.sampling, written.sampling);
        assert_eq!(plain.model.lanes, written.model.lanes);
        assert_eq!(plain.model.queue, written.model.queue);
        assert_eq!(plain.model.queue_tokens, written.model.queue_tokens);
        assert_eq!(plain.log, written.log);
        assert_eq!(plain.spokes, written.spokes);
        assert_eq!(plain.spokes, parse("", &folder, Overrides::default()).unwrap().spokes);
    }

    #[test]
    fn tasks_and_gates_are_tables_of_names() {
        let text = "[spokes.tasks]\nencoding_response = 'encoding'\n[spokes.gate.encoding]\nprobes = 'p.jsonl'\nepr = 0.9\n";
        let spokes = parse(text, Path::new("/etc"), Overrides::default()).unwrap().spokes;
        assert_eq!(spokes.choice.tasks["encoding_response"], "encoding");
        let gate = &spokes.gates["encoding"];
        assert_eq!((gate.probes.as_path(), gate.epr, gate.fr), (Path::new("/etc/p.jsonl"), Some(0.9), None));
    }

    #[test]
    fn mistakes_about_spokes_are_found_all_at_once() {
        let text = "[spokes]\nwatch = 'sometimes'\nsettle = '0s'\nmost = 0\nmemory = '3'\ndefault = 'two words'\n\
                    unknown_model = 'guess'\nprobes = true\n[spokes.tasks]\nencode = 'a:b'\n\
                    [spokes.gate.encoding]\nepr = 2.0\n[spokes.gate.other]\nprobes = 'p'\n";
        insta::assert_snapshot!(mistakes(text).join("\n"));
    }

    #[test]
    fn the_command_line_wins_and_paths_are_relative_to_the_file() {
        let text = "[server]\nlisten = '127.0.0.1:1'\nrequest_deadline = '90s'\n[model]\npath = 'm/x.gguf'\nchat_template = 'm/c.jinja'\n[paths]\nspokes='s'";
        let overrides = Overrides { listen: Some("127.0.0.1:2".parse().unwrap()), ..Overrides::default() };
        let settings = parse(text, Path::new("/etc/bespoke"), overrides).unwrap();
        assert_eq!(settings.server.listen.port(), 2);
        assert_eq!(settings.server.request_deadline, Duration::from_secs(90));
        assert_eq!(settings.model.path, Path::new("/etc/bespoke/m/x.gguf"));
        assert_eq!(settings.model.chat_template.as_deref(), Some(Path::new("/etc/bespoke/m/c.jinja")));
        assert_eq!(settings.model.id, "x");
        assert_eq!(settings.paths.spokes, Path::new("/etc/bespoke/s"));
    }

    #[test]
    fn all_mistakes_are_reported_at_once_with_their_lines() {
        let text = "[server]\nlisten = 'here'\nbody_limt = '2 MiB'\ndrain = 'soon'\n\n[model]\nlanes = 'four'\nqueue = 0\n\n[sampling]\ntop_p = 1.5\n\n[extra]\nx = 1\n";
        insta::assert_snapshot!(mistakes(text).join("\n"));
    }

    #[test]
    fn mistakes_of_limits_logs_and_names_are_found_too() {
        let text = "[server]\nslow_reader = '0s'\nhead_limit = '1 KiB'\nhosts = ['a b', 'box.lan:80', '[::1]']\n\
                    cors_origins = ['box.lan', 'localhost', 'http://ok:1']\nconnections = 0\n[log]\naccess = 'loud'\nformat = 'xml'\n";
        insta::assert_snapshot!(mistakes(text).join("\n"));
    }

    #[test]
    fn a_seed_is_drawn_unless_one_is_given() {
        let seed = |text: &str| {
            let text = format!("[sampling]\nseed = {text}\n");
            parse(&text, Path::new("/etc"), Overrides::default()).map(|settings| settings.sampling.seed)
        };
        assert_eq!((seed("42").unwrap(), seed("-1").unwrap()), (Some(42), None));
        let found = mistakes("[sampling]\nseed = -2\n[model]\naliases = ['a', '']\n");
        assert!(
            found[0].starts_with("line 2: sampling.seed = -2") && found[1].contains("model.aliases"),
            "{found:?}"
        );
    }

    #[test]
    fn no_time_at_all_is_no_deadline() {
        let found = mistakes("[server]\nrequest_deadline = '0s'\n");
        assert!(found.len() == 1 && found[0].starts_with("line 2: server.request_deadline"), "{found:?}");
    }

    #[test]
    fn broken_toml_names_its_line() {
        let found = mistakes("[server]\nlisten = \n[model]\nlanes = 99999\n");
        assert!(found[0].starts_with("line 2: "), "{found:?}");
        assert!(
            found.iter().any(|m| m.contains("model.lanes")),
            "what can be read is still checked: {found:?}"
        );
    }

    #[test]
    fn lanes_and_kept_sequences_share_what_llama_cpp_has() {
        let text = |lanes: u32, kept: u32| format!("[model]\nlanes = {lanes}\ncached_sequences = {kept}\n");
        for (lanes, kept) in [(256, 0), (200, 56), (8, 128)] {
            let model = parse(&text(lanes, kept), Path::new("/etc"), Overrides::default()).unwrap().model;
            assert_eq!((model.lanes, model.cached_sequences), (lanes, kept));
        }
        for (lanes, kept, most) in [(256, 1, 0), (200, 57, 56), (8, 129, 128)] {
            let found = mistakes(&text(lanes, kept));
            let expected =
                format!("model.cached_sequences = {kept}: expected a whole number from 0 to {most}");
            assert!(found.len() == 1 && found[0].contains(&expected), "{found:?}");
        }
    }

    #[test]
    fn a_named_file_that_is_missing_is_an_error() {
        let error = load(Some(Path::new("/nowhere/bespoke.toml")), Overrides::default()).unwrap_err();
        assert!(error.to_string().contains("/nowhere/bespoke.toml"), "{error}");
    }
}
