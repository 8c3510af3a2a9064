//! Notes in other languages: their words in random order around facts, so that copying needs no
//! knowledge of the language.

use crate::task::generator::draw::{Draw, capitalised};

/// Common words of a language, and whether it separates words by spaces.
struct Language {
    words: &'static str,
    spaced: bool,
    stop: &'static str,
}

const LANGUAGES: [Language; 10] = [
    Language {
        words: "der die das Fehler tritt auf wenn die Verbindung länger als eine Stunde geöffnet bleibt und wir haben heute über den \
                Zähler gesprochen Größe für Änderung läuft nicht mehr Schlüssel prüfen Datei gelöscht während später müssen können \
                würde außerdem Straße grün Messwert Rückgabe weil Speicher voll Prüfung Übergabe zurück Lösung gefunden Gerät Küche",
        spaced: true,
        stop: ".",
    },
    Language {
        words: "le serveur a été redémarré après la mise à jour nous avons décidé de garder la clé dans un fichier séparé l'erreur \
                vient du réseau très élevé déjà où pièce modèle précis château forêt garçon français été hôtel où ça marche encore \
                vérifier les paramètres coût réduit côté client même façon leçon problème résolu trop tôt bibliothèque",
        spaced: true,
        stop: ".",
    },
    Language {
        words: "el servidor no responde cuando la conexión está abierta hemos cambiado la configuración mañana por la tarde señal año \
                niño pequeño después también según código dirección teléfono corazón útil rápido número fácil aquí allí todavía \
                memoria llena arreglado la versión página búsqueda índice camión jardín montaña",
        spaced: true,
        stop: ".",
    },
    Language {
        words: "il servizio è lento perché la memoria è piena abbiamo già provato più volte città perché così però qualità velocità \
                errore di rete chiave nuova libreria domani stazione mercato giovedì metà caffè università funziona ancora bene \
                riavviare il processo senza perdere i dati tabella colonna indice",
        spaced: true,
        stop: ".",
    },
    Language {
        words: "o servidor não responde à noite porque a conexão fica aberta já mudamos a configuração amanhã de manhã ação função \
                versão coração água avião pão você também está código família útil fácil três relatório memória cheia corrigido \
                informação situação português irmã lição",
        spaced: true,
        stop: ".",
    },
    Language {
        words: "serwer nie odpowiada gdy połączenie jest otwarte zmieniliśmy ustawienia jutro rano błąd pamięć pełna żółty źródło \
                wartość część ścieżka klucz długość późno wciąż także działa naprawione plik usunięty książka święto łódź mąż",
        spaced: true,
        stop: ".",
    },
    Language {
        words: "server neodpovídá když je spojení otevřené změnili jsme nastavení zítra ráno chyba paměť plná žlutý kůň řeka \
                příliš hodnota cesta klíč délka pozdě také funguje opraveno soubor smazán kniha město dveře člověk",
        spaced: true,
        stop: ".",
    },
    Language {
        words: "сервер не отвечает когда соединение открыто мы изменили настройки завтра утром ошибка память полна значение \
                путь ключ длина поздно тоже работает исправлено файл удалён книга город дверь новый быстрый проверка",
        spaced: true,
        stop: ".",
    },
    Language {
        words: "サーバー が 応答 しない 接続 を 確認 設定 変更 明日 エラー メモリ 不足 修正 済み ファイル 削除 更新 は に の 新しい 速度 遅い 会議 決定 した",
        spaced: false,
        stop: "。",
    },
    Language {
        words: "服务器 没有 响应 连接 打开 配置 已 修改 明天 错误 内存 不足 修复 文件 删除 更新 的 在 新 速度 慢 会议 决定 了 数据 测试 通过",
        spaced: false,
        stop: "。",
    },
];

/// A note in one of ten languages, with facts in it.
pub fn note(draw: &mut Draw, target: usize) -> String {
    let language = &LANGUAGES[draw.count(0, LANGUAGES.len() - 1)];
    let words: Vec<&str> = language.words.split_whitespace().collect();
    let mut text = String::new();
    while text.is_empty() || text.chars().count() < target {
        let mut sentence = String::new();
        for at in 0..draw.count(3, 12) {
            if at > 0 && language.spaced {
                sentence.push(' ');
            }
            if draw.chance(0.13) {
                let fact = draw.pick(&[
                    "{id}", "{num}", "{path}", "{ver}", "{person}", "{tool}", "{ms}", "{err}", "`{fn}`",
                    "{city}",
                ]);
                let fact = draw.fill(fact);
                let blank = if language.spaced { "" } else { " " };
                sentence.extend([blank, &fact, blank]);
            } else {
                sentence.push_str(draw.any(&words));
            }
        }
        let sentence = capitalised(sentence.trim());
        text.push_str(&sentence);
        text.push_str(language.stop);
        text.push_str(if draw.chance(0.2) {
            "\n"
        } else if language.spaced {
            " "
        } else {
            ""
        });
    }
    text.trim_end().to_owned()
}
