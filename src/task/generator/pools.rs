//! Pools of names. The hash of a name decides whether it is for training or evaluation.

/// Given names.
#[rustfmt::skip]
pub const FIRST: &[&str] = &[
    "Aaliyah", "Abebe", "Adele", "Agnes", "Ahmed", "Aiko", "Alba", "Alejandro", "Alina", "Amara", "Amir", "Ana",
    "Andrei", "Anika", "Anton", "Arjun", "Astrid", "Ayesha", "Beatriz", "Bela", "Birgit", "Bogdan", "Brian",
    "Camille", "Carlos", "Carmen", "Cecilia", "Chidi", "Chloe", "Clara", "Dana", "Darius", "David", "Deepa",
    "Diego", "Dmitri", "Dora", "Edgar", "Elena", "Eli", "Elif", "Emeka", "Emma", "Enrique", "Erik", "Esther",
    "Eva", "Fabio", "Farah", "Fatima", "Felix", "Fiona", "Florian", "Francesca", "Freya", "Gabriel", "Gita",
    "Giulia", "Goran", "Grace", "Gustavo", "Hana", "Hannah", "Haruto", "Hassan", "Heidi", "Helena", "Hugo",
    "Ibrahim", "Igor", "Ines", "Ingrid", "Irina", "Isabel", "Ivan", "Jakub", "Jana", "Jasmine", "Javier", "Jin",
    "Johan", "Jonas", "Jorge", "Judith", "Julia", "Kai", "Kamal", "Karin", "Katya", "Keiko", "Kofi", "Kwame",
    "Lars", "Laura", "Leila", "Lena", "Leon", "Liam", "Lin", "Linh", "Lucia", "Luka", "Magda", "Maja", "Malik",
    "Manuel", "Marco", "Maren", "Maria", "Marta", "Mateo", "Mehmet", "Mei", "Mila", "Milan", "Miriam", "Mohan",
    "Nadia", "Naomi", "Nikolai", "Nina", "Noah", "Nora", "Oksana", "Olga", "Oliver", "Omar", "Oscar", "Pablo",
    "Paula", "Pavel", "Petra", "Pia", "Priya", "Quentin", "Rafael", "Rania", "Rashid", "Ravi", "Rebecca", "Ren",
    "Rita", "Rosa", "Ruth", "Sakura", "Samir", "Sandra", "Sara", "Selin", "Sergei", "Shreya", "Silvia", "Simon",
    "Sofia", "Stefan", "Sunil", "Susanna", "Svetlana", "Tamar", "Tariq", "Teresa", "Thomas", "Tomas", "Ursula",
    "Valentina", "Vera", "Victor", "Vikram", "Wanda", "Wei", "Yara", "Yuki", "Yusuf", "Zara", "Zoltan",
];

/// Family names.
#[rustfmt::skip]
pub const LAST: &[&str] = &[
    "Abbott", "Abe", "Adeyemi", "Ahmadi", "Almeida", "Andersson", "Aoki", "Bakker", "Banerjee", "Barros",
    "Bauer", "Becker", "Bennett", "Berger", "Bianchi", "Blake", "Borg", "Bose", "Brandt", "Brooks", "Carter",
    "Castillo", "Chandra", "Chen", "Cohen", "Costa", "Dahl", "Das", "Delgado", "Demir", "Diaz", "Dubois",
    "Duran", "Eklund", "Endo", "Engel", "Fischer", "Fletcher", "Fontaine", "Foster", "Fuentes", "Fujita",
    "Garcia", "Gerber", "Gomez", "Grant", "Gruber", "Gupta", "Haas", "Hansen", "Harper", "Hayashi", "Herrera",
    "Hoffmann", "Horvath", "Hughes", "Ibarra", "Iversen", "Ivanov", "Jansen", "Jensen", "Johansson", "Joshi",
    "Kaplan", "Kaya", "Keller", "Khan", "Kim", "Kimura", "Klein", "Kovacs", "Kowalski", "Kruger", "Kumar",
    "Larsen", "Laurent", "Lehmann", "Levin", "Lindgren", "Lopez", "Lund", "Maier", "Malik", "Marino", "Martin",
    "Mensah", "Meyer", "Mishra", "Molina", "Moreau", "Morgan", "Mori", "Moser", "Murphy", "Nagy", "Nakamura",
    "Navarro", "Nguyen", "Nilsen", "Novak", "Ocampo", "Okafor", "Okoye", "Olsen", "Ortiz", "Osman", "Park",
    "Patel", "Pereira", "Petrov", "Pham", "Popescu", "Quinn", "Rahman", "Ramos", "Reyes", "Ricci", "Rossi",
    "Roth", "Saito", "Salazar", "Santos", "Sato", "Schmidt", "Schneider", "Schwarz", "Sharma", "Silva", "Singh",
    "Sokolov", "Stein", "Sundberg", "Svensson", "Takeda", "Tanaka", "Torres", "Tran", "Ueda", "Vargas",
    "Vasquez", "Vogel", "Wagner", "Walker", "Wang", "Weber", "Winter", "Wolf", "Yamada", "Yilmaz", "Zhang",
    "Ziegler",
];

/// Places.
#[rustfmt::skip]
pub const CITIES: &[&str] = &[
    "Aarhus", "Accra", "Antwerp", "Athens", "Bergen", "Bilbao", "Bogota", "Boston", "Bremen", "Brno", "Busan",
    "Cairo", "Calgary", "Cologne", "Dakar", "Denver", "Dublin", "Geneva", "Ghent", "Hanoi", "Helsinki",
    "Jakarta", "Kyoto", "Lagos", "Leeds", "Leipzig", "Lima", "Lisbon", "Ljubljana", "Lyon", "Madrid", "Malmo",
    "Manila", "Montreal", "Mumbai", "Nairobi", "Naples", "Osaka", "Oslo", "Ottawa", "Porto", "Prague", "Quito",
    "Riga", "Rotterdam", "Seattle", "Seoul", "Seville", "Sofia", "Tallinn", "Tampere", "Tbilisi", "Tokyo",
    "Toronto", "Trieste", "Turin", "Utrecht", "Valencia", "Vienna", "Vilnius", "Warsaw", "Zagreb", "Zurich",
];

/// Libraries, tools and products.
#[rustfmt::skip]
pub const TOOLS: &[&str] = &[
    "Airflow", "Ansible", "Apache", "Bazel", "Blender", "Caddy", "Cargo", "Cassandra", "Celery", "Clang",
    "CMake", "Consul", "CUDA", "Datadog", "Debian", "Deno", "Django", "Docker", "DuckDB", "ElasticSearch",
    "Envoy", "ESLint", "Excel", "Fedora", "Figma", "Firefox", "Flask", "GitHub", "GitLab", "Grafana", "GraphQL",
    "Gradle", "gRPC", "HAProxy", "Helm", "Istio", "Jaeger", "Jenkins", "Jira", "JUnit", "Kafka", "Kibana",
    "Kotlin", "Kubernetes", "Laravel", "LaTeX", "LLVM", "Lua", "Mastodon", "MariaDB", "Memcached", "Metal",
    "MinIO", "MongoDB", "MySQL", "NATS", "Neovim", "Nginx", "NixOS", "NumPy", "OAuth", "Ollama", "OpenAPI",
    "OpenSSL", "OpenTelemetry", "Pandas", "Photoshop", "PostgreSQL", "Prometheus", "Protobuf", "PyTorch",
    "RabbitMQ", "Rails", "React", "Redis", "Rollup", "Ruby", "Sentry", "Slack", "SQLite", "Svelte", "Swift",
    "systemd", "Tailwind", "Terraform", "Tokio", "TypeScript", "Ubuntu", "Vault", "Vite", "Vulkan", "WebGPU",
    "Webpack", "Windows", "WordPress", "Zig", "zlib", "Zookeeper", "axum", "clap", "ffmpeg", "jq", "libcurl",
    "make", "ninja", "npm", "pip", "pnpm", "pytest", "rustc", "serde", "tmux", "uv", "vLLM", "wgpu", "yarn",
];

/// Root folders of paths.
#[rustfmt::skip]
pub const ROOTS: &[&str] = &[
    "src", "lib", "app", "internal", "pkg", "cmd", "tests", "test", "docs", "scripts", "crates", "packages",
    "server", "client", "core", "api", "tools", "examples", "benches", "config", "deploy", "web", "ui", "proxy",
    "include", "assets", ".github/workflows", "./build", "../shared", "~/projects", "/home/dev", "/var/log",
    "/etc", "/opt", "/usr/local", "/tmp", "/srv/www", "/static", "frontend/src", "backend",
];

/// File extensions.
#[rustfmt::skip]
pub const ENDINGS: &[&str] = &[
    "rs", "rs", "go", "go", "py", "py", "js", "ts", "tsx", "svelte", "html", "css", "yaml", "yml", "json",
    "toml", "md", "md", "sh", "sql", "gguf", "db", "txt", "log", "cu", "cpp", "c", "h", "java", "patch",
    "jsonl", "lock",
];

/// Prefixes of error codes.
#[rustfmt::skip]
pub const ERRORS: &[&str] = &[
    "E0", "ERR_", "ORA-", "TS", "C", "SQLSTATE ", "0x", "EX", "HTTP ", "CVE-2024-", "LNK", "PGRST",
    "CUDA_ERROR_", "SIG", "E", "W", "RUSTSEC-2023-", "MSB", "DL", "KB",
];

/// Prefixes of scoped titles (`area: ...`).
#[rustfmt::skip]
pub const SCOPES: &[&str] = &[
    "api", "auth", "build", "cache", "chore", "ci", "cli", "config", "core", "db", "deps", "docker", "docs",
    "engine", "feat", "fix", "http", "infra", "kernel", "lint", "log", "metrics", "net", "parser", "perf",
    "proxy", "refactor", "router", "runtime", "scheduler", "server", "storage", "style", "test", "tests", "ui",
    "web",
];

/// Units that follow a number after a space.
#[rustfmt::skip]
pub const UNITS: &[&str] = &[
    "ms", "seconds", "minutes", "hours", "days", "MB", "GB", "KiB", "tokens", "requests", "rows", "files",
    "users", "tests", "bytes", "threads", "cores", "retries", "items", "pages", "euros", "kg", "km", "degrees",
    "points", "steps", "tok/s",
];
