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
    # Graphs are built here, not computed: that is ggml, which keeps its -O3. The last -O counts.
    cmake_language(DEFER CALL target_compile_options llama PRIVATE -O1)
endif()
