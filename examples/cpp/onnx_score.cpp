// Score images with a model that `pydfm export` wrote, by onnxruntime alone:
//
//     onnx_score MODEL.onnx [--alpha A] IMAGE.ppm ...
//
// Images are binary PPM (P6, 8 bits), which needs no library, of any size.

#include <onnxruntime_cxx_api.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

struct Image {
  std::int64_t width = 0, height = 0;
  std::vector<std::uint8_t> pixels;  // RGB, row by row
};

Image read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string magic;
  Image image;
  int largest = 0;
  file >> magic >> image.width >> image.height >> largest;
  file.get();
  if (!file || magic != "P6" || largest != 255 || image.width < 1 || image.height < 1)
    throw std::runtime_error("'" + path + "' is no binary PPM of 8 bits without comments");
  const auto size = static_cast<std::streamsize>(3 * image.width * image.height);
  image.pixels.resize(static_cast<std::size_t>(size));
  if (!file.read(reinterpret_cast<char*>(image.pixels.data()), size))
    throw std::runtime_error("'" + path + "' ends too early");
  return image;
}

double read_level(const std::string& text) {
  char* end = nullptr;
  const double level = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0' || !(level > 0 && level < 1))
    throw std::runtime_error("--alpha is '" + text + "'; it must be between 0 and 1");
  return level;
}

void run(const std::vector<std::string>& arguments) {
  const bool given = arguments.size() > 2 && arguments[1] == "--alpha";
  if (arguments.size() < (given ? 4 : 2))
    throw std::runtime_error("usage: onnx_score MODEL.onnx [--alpha A] IMAGE.ppm ...");
  double alpha = given ? read_level(arguments[2]) : 0.0;  // left out, it is the model's own
  Ort::Env environment(ORT_LOGGING_LEVEL_ERROR, "pydfm");
  Ort::Session session(environment, std::filesystem::path(arguments[0]).c_str(),
                       Ort::SessionOptions());
  const bool decides = session.GetOutputCount() > 2;  // as models that have held-out scores do
  const char* inputs[] = {"images", "alpha"};
  const char* outputs[] = {"score", "p_value", "verdict"};
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  for (std::size_t i = given ? 3 : 1; i < arguments.size(); ++i) {
    Image image = read_ppm(arguments[i]);
    const std::int64_t shape[] = {1, image.height, image.width, 3};
    std::vector<Ort::Value> values;
    values.push_back(Ort::Value::CreateTensor<std::uint8_t>(memory, image.pixels.data(),
                                                            image.pixels.size(), shape, 4));
    if (given) values.push_back(Ort::Value::CreateTensor<double>(memory, &alpha, 1, nullptr, 0));
    auto found = session.Run(Ort::RunOptions(), inputs, values.data(), values.size(), outputs,
                             decides ? 3 : 1);
    std::cout << arguments[i] << " score=" << found[0].GetTensorData<float>()[0];
    if (decides)
      std::cout << " p_value=" << found[1].GetTensorData<double>()[0] << " verdict="
                << (found[2].GetTensorData<std::int64_t>()[0] < 0 ? "anomalous" : "ok");
    std::cout << '\n';
  }
}

int main(int count, char** values) {
  try {
    run({values + 1, values + count});
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 2;
  }
}
