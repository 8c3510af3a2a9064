# What llama.cpp's build is told beyond what llama-cpp-sys-2 sets. CMake includes this file after each `project()`:
# `.cargo/config.toml` names it in CMAKE_PROJECT_INCLUDE, which that crate passes on.

# No AMX. GCC up to 13 takes `_tile_loadconfig` for a read of 8 bytes and drops the other stores of llama.cpp's tile
# configuration (ggml_tile_config_init); the first product is then an illegal instruction and the process ends. Weights
# that llama.cpp repacks for AMX would also be out of reach of our own kernels. The macros guard all of that code, and
# undefining them works whatever -march says and in whatever order the flags come.
add_compile_options(-U__AMX_TILE__ -U__AMX_INT8__ -U__AMX_BF16__)

# A third of what the crate compiles serves llama.cpp's own programs (`common`: arguments, templates, HTTP), and its binding
# depends on the sys crate with that feature on. Nothing of it is used here.
if(PROJECT_NAME STREQUAL "llama.cpp")
    set(LLAMA_BUILD_COMMON OFF)
    # Most of this library builds the graphs of 150 architectures; ggml computes them, and keeps its -O3. What runs for
    # each token, or for each entry of a vocabulary, keeps it as well. The last -O counts, and a file's comes last.
    cmake_language(DEFER CALL target_compile_options llama PRIVATE -O1)
    set(BESPOKE_HOT batch context graph kv-cache kv-cache-iswa memory-hybrid memory-recurrent model-loader sampler vocab)
    list(TRANSFORM BESPOKE_HOT REPLACE "(.+)" "${PROJECT_SOURCE_DIR}/src/llama-\\1.cpp")
    list(APPEND BESPOKE_HOT "${PROJECT_SOURCE_DIR}/src/unicode.cpp")
    cmake_language(DEFER CALL set_source_files_properties ${BESPOKE_HOT} TARGET_DIRECTORY llama PROPERTIES COMPILE_OPTIONS -O3)
endif()
